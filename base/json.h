/* jansson with this project's errors: where a value is missing or of the wrong kind, the text names
 * the path ("config.json: rope_scaling.factor: expected a number"). All `find` functions borrow. */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include "base/bytes.h"
#include "base/err.h"

#include <jansson.h>

err json_open(json_t **out, const char *path, size_t size_max); /* json_decref() it */
err json_parse(json_t **out, const char *text, size_t size,
               const char *what); /* `what` names it in errors */
/* Required members. `where` is put in front of the key in errors. */
err json_get_int(int64_t *out, const json_t *object, const char *key, int64_t least, int64_t most,
                 const char *where);
err json_get_num(double *out, const json_t *object, const char *key, const char *where);
err json_get_str(const char **out, const json_t *object, const char *key, const char *where);
err json_get_bool(bool *out, const json_t *object, const char *key, const char *where);
/* Absent or null: *out keeps its value (the default) and it is no error. */
err json_opt_int(int64_t *out, const json_t *object, const char *key, int64_t least, int64_t most,
                 const char *where);
err json_opt_num(double *out, const json_t *object, const char *key, const char *where);
err json_opt_str(const char **out, const json_t *object, const char *key, const char *where);
err json_opt_bool(bool *out, const json_t *object, const char *key, const char *where);
/* Canonical text: keys sorted, no spaces, reals with 17 significant digits, UTF-8 unescaped. */
err json_write(struct bytes *out, const json_t *value);

#endif
