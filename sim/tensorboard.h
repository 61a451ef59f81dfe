/* The rounds of a simulation as an event file of TensorBoard.
 *
 * The file is a list of records: the size of the event (8 bytes, little endian), the masked CRC-32C
 * of these 8 bytes, the event, and its masked CRC-32C. An event is a protobuf message (event.proto
 * of TensorFlow) of which a few fields are used:
 *
 *     Event    1 wall_time (double)   2 step (int64)   3 file_version (string)   5 summary
 *     Summary  1 value, repeated      Value  1 tag (string)   2 simple_value (float)
 *
 * The step is the round and the wall time is the virtual time in seconds, so TensorBoard's axis
 * "relative" is virtual time. */
#ifndef SIM_TENSORBOARD_H
#define SIM_TENSORBOARD_H

#include "base/bytes.h"
#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Reads rounds.jsonl in the folder `from` and writes an event file into the folder `to`, which is
 * created. */
err tensorboard_write(const char *to, const char *from);

struct tensorboard_value {
    const char *tag;
    double value;
};
struct tensorboard_event {
    double wall_s;
    uint64_t step;
    const struct tensorboard_value *value; /* those that are not finite are left out */
    size_t values;
};
err tensorboard_begin(struct bytes *out); /* the first record, which names the version */
err tensorboard_add(struct bytes *out, const struct tensorboard_event *event);
uint32_t tensorboard_crc(const void *data, size_t size); /* CRC-32C, not masked */

#endif
