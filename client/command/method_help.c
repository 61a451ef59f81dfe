#include "client/command/method_help.h"

#include "agg/round/method_options.h"
#include "base/option.h"

#include <stdio.h>

static err option_line(struct bytes *out, const struct method_option *o)
{
    char left[80], right[240];
    int n = snprintf(left, sizeof left, "  %s=%s", o->key, o->values);
    TRY(bytes_printf(out, "%-32s", left));
    TRY(bytes_printf(out, n < 32 ? "%s" : "\n%32s", ""));
    snprintf(right, sizeof right, "%s [%s]%s%s%s", o->help, o->normal, o->methods ? " (" : "",
             o->methods ? o->methods : "", o->methods ? ")" : "");
    return option_help_wrap(out, right, 32, 32);
}

err method_help(struct bytes *out)
{
    size_t count = 0;
    const struct method_option *option = method_options_table(&count);
    TRY(bytes_printf(out, "methods:\n"));
    for (const char *const *name = method_names(); *name; name++)
        TRY(bytes_printf(out, "  %-12s%s\n", *name, method_find(*name)->summary));
    TRY(bytes_printf(
        out, "\noptions of the methods: --option KEY=VALUE [default] (only for these methods)\n"));
    for (size_t i = 0; i < count; i++)
        TRY(option_line(out, &option[i]));
    return ERR_NONE;
}
