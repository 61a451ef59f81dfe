/* The rows of a data file as JSON texts: JSON Lines (one row in each line) or one JSON list of
 * rows, either of them also compressed by gzip. The file is read in blocks, so memory is that of
 * the longest row. Files of other kinds (Parquet, Arrow, CSV, spreadsheets, other compressions,
 * UTF-16) are refused by name, with a command that converts them. */
#ifndef ENGINE_DATA_FILE_H
#define ENGINE_DATA_FILE_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct data_sink {
    /* `line` is the number of the line where the text of the row starts, from 1. The text is valid
     * during the call. An error ends the reading. */
    err (*row)(void *object, const char *text, size_t size, uint64_t line);
    void *object;
};

/* Errors of the file itself name it, and the line where there is one. ERR_INPUT for a file that is
 * missing, not readable or of another kind; ERR_MACHINE for errors of the disk. Blank lines and a
 * byte order mark are skipped. */
err data_file_read(const char *path, const struct data_sink *sink);

#endif
