/* jansson with errors that name the place: "config.json: rope_scaling.factor: expected a number".
 * Strings that the functions return are borrowed from the object. */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include "base/bytes.h"
#include "base/err.h"

#include <jansson.h>

err json_open(json_t **out, const char *path, size_t size_max); /* json_decref() it */
/* `what` names the text in errors. */
err json_parse(json_t **out, const char *text, size_t size, const char *what);

/* Required members: ERR_INPUT when absent, null or of another type. Errors put `where` in front of
 * the key. Ranges are inclusive. */
err json_get_int(int64_t *out, const json_t *object, const char *key, int64_t least, int64_t most,
                 const char *where);
err json_get_num(double *out, const json_t *object, const char *key, const char *where);
err json_get_str(const char **out, const json_t *object, const char *key, const char *where);

/* Optional members: *out keeps its value (the default) when the member is absent or null. */
err json_opt_int(int64_t *out, const json_t *object, const char *key, int64_t least, int64_t most,
                 const char *where);
err json_opt_num(double *out, const json_t *object, const char *key, const char *where);
err json_opt_str(const char **out, const json_t *object, const char *key, const char *where);
err json_opt_bool(bool *out, const json_t *object, const char *key, const char *where);

/* Canonical text: keys sorted, no spaces, reals with 17 significant digits, UTF-8 unescaped. */
err json_write(struct bytes *out, const json_t *value);

#endif
