/* An untrusted rank or alpha pattern is refused, or gives every module a positive value, the same
 * each time. */
#include "agg/adapter/adapter_config.h"
#include "base/json.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/pattern.json", NULL};
const int fuzz_runs = 4000;

static void look(const struct adapter_config_pattern *pattern)
{
    static const char *const modules[] = {"model.layers.0.self_attn.q_proj",
                                          "model.layers.11.mlp.down_proj", "q_proj", "a", ""};
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        double value = 0, again = 0;
        err e = adapter_config_pattern_find(&value, pattern, modules[i], 3);
        err f = adapter_config_pattern_find(&again, pattern, modules[i], 3);
        if (e.kind != f.kind || (err_is(e) && e.kind != ERR_INPUT)) abort(); /* too many steps */
        if (!err_is(e) && (!(value > 0) || again != value)) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *object = NULL;
    if (err_is(json_parse(&object, (const char *)data, size, "fuzz"))) return 0;
    for (int expressions = 0; expressions < 2; expressions++) {
        struct adapter_config_pattern pattern = {0};
        struct arena arena = {0};
        err e = adapter_config_pattern_read(&pattern, object, expressions, "fuzz", &arena);
        if (!err_is(e)) look(&pattern);
        if (err_is(e) && e.kind != ERR_INPUT) abort();
        adapter_config_pattern_close(&pattern);
        arena_close(&arena);
    }
    json_decref(object);
    return 0;
}
