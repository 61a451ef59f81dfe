/* The list of all methods, in the order of help texts. A new method is a line in METHODS. */
#include "agg/round/method.h"

#include <string.h>

#define METHODS(ROW)                                                                               \
    ROW(method_flora)                                                                              \
    ROW(method_fed_sb)                                                                             \
    ROW(method_fedit)                                                                              \
    ROW(method_hetlora)                                                                            \
    ROW(method_ffa)                                                                                \
    ROW(method_fedsa)                                                                              \
    ROW(method_rolora)                                                                             \
    ROW(method_fedex)                                                                              \
    ROW(method_flexlora)                                                                           \
    ROW(method_florist)                                                                            \
    ROW(method_lora_fair)                                                                          \
    ROW(method_fedsvd)

#define DECLARE(row) extern const struct method row;
#define ADDRESS(row) &row,
METHODS(DECLARE)
static const struct method *const methods[] = {METHODS(ADDRESS)};
enum { COUNT = sizeof methods / sizeof *methods };

const struct method *method_find(const char *name)
{
    for (size_t i = 0; i < COUNT; i++)
        if (strcmp(methods[i]->name, name) == 0) return methods[i];
    return NULL;
}

const char *const *method_names(void)
{
    static const char *names[COUNT + 1];
    for (size_t i = 0; i < COUNT; i++)
        names[i] = methods[i]->name;
    return names;
}

const char *method_suggestion(char out[TEXT_SUGGESTION_BYTES], const char *name)
{
    return text_suggestion(out, name, method_names(), COUNT);
}
