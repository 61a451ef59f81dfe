/* One line per event on standard error, as logfmt or JSON. Only programs log, never libraries.
 * Thread-safe: a line is one write(2). Never log values of updates, keys or client data.
 *
 *   LOG(LOG_INFO, "round.closed", LOG_STR("run", id), LOG_INT("round", 7),
 *       LOG_INT("took_ms", ms)); */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

struct log_field {
    const char *key;
    enum { LOG_FIELD_STR, LOG_FIELD_INT, LOG_FIELD_NUM } kind;
    const char *str;
    int64_t integer;
    double num;
};

#define LOG_STR(k, v) ((struct log_field){.key = (k), .kind = LOG_FIELD_STR, .str = (v)})
#define LOG_INT(k, v)                                                                              \
    ((struct log_field){.key = (k), .kind = LOG_FIELD_INT, .integer = (int64_t)(v)})
#define LOG_NUM(k, v) ((struct log_field){.key = (k), .kind = LOG_FIELD_NUM, .num = (v)})
#define LOG(level, event, ...)                                                                     \
    log_event((level), (event), (const struct log_field[]){__VA_ARGS__},                           \
              sizeof((const struct log_field[]){__VA_ARGS__}) / sizeof(struct log_field))

/* Call before threads start; later only with another level or form. Events below `least` are
 * dropped. If standard error is a stream of systemd's journal, each line gets its priority. */
void log_init(enum log_level least, bool json);
/* The number of lines that could not be written, for example because the disk is full, and the
 * errno of the last one. Any thread. */
uint64_t log_lost(int *why);
void log_event(enum log_level level, const char *event, const struct log_field *field,
               size_t count);

#endif
