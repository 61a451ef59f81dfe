#include "client/command/method_help.h"

#include "agg/round/method_options.h"
#include "base/option.h"

#include <stdio.h>

/* Two columns: KEY=VALUES on the left; help, default and the methods that have the option on the
 * right. A left part that is too wide gets a line of its own, as in option_help(). */
static err option_line(struct bytes *out, const struct method_option *o)
{
    char left[80], right[320], takers[160] = "";
    int n = snprintf(left, sizeof left, "  %s=%s", o->key, o->values);
    TRY(bytes_printf(out, "%-32s", left));
    TRY(bytes_printf(out, n < 32 ? "%s" : "\n%32s", ""));
    if (o->own) method_options_takers(takers, sizeof takers, o->key);
    snprintf(right, sizeof right, "%s [%s]%s%s%s", o->help, o->normal, o->own ? " (" : "", takers,
             o->own ? ")" : "");
    return option_help_wrap(out, right, 32, 32);
}

/* "fed-sb, ffa": the methods that may run with privacy unit client. */
static err private_names(struct bytes *out)
{
    size_t count = 0;
    for (const char *const *name = method_names(); *name; name++)
        if (method_find(*name)->client_private)
            TRY(bytes_printf(out, "%s%s", count++ ? ", " : "", *name));
    return ERR_NONE;
}

/* The methods whose defaults differ from the option table, one on a line. */
static err own_defaults(struct bytes *out)
{
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        if (m->lr == 0 && m->alpha == 0) continue;
        TRY(bytes_printf(out, "  %-12s", *name));
        if (m->lr > 0) TRY(bytes_printf(out, "--lr %g", m->lr));
        if (m->alpha > 0) TRY(bytes_printf(out, "%s--alpha %g", m->lr > 0 ? " " : "", m->alpha));
        TRY(bytes_printf(out, "\n"));
    }
    return ERR_NONE;
}

/* Everything comes from the registry of methods, so that a new method appears here without an
 * edit. */
err method_help(struct bytes *out)
{
    size_t count = 0;
    const struct method_option *option = method_options_table(&count);
    TRY(bytes_printf(out, "methods:\n"));
    for (const char *const *name = method_names(); *name; name++)
        TRY(bytes_printf(out, "  %-12s%s\n", *name, method_find(*name)->summary));
    TRY(bytes_printf(out, "\nmethods with client-level privacy (--privacy client): "));
    TRY(private_names(out));
    TRY(bytes_printf(out, "\n\nmethods with defaults of their own:\n"));
    TRY(own_defaults(out));
    TRY(bytes_printf(
        out, "\noptions of the methods: --option KEY=VALUE [default] (only for these methods)\n"));
    for (size_t i = 0; i < count; i++)
        TRY(option_line(out, &option[i]));
    return ERR_NONE;
}

/* Methods that need the shared state of a run are left out: `aggregate` refuses them. */
err method_help_aggregate(struct bytes *out)
{
    TRY(bytes_printf(out, "methods:\n"));
    for (const char *const *name = method_names(); *name; name++) {
        const struct method_aggregate *a = &method_find(*name)->aggregate;
        if (a->way == METHOD_AGGREGATE_SUM || a->way == METHOD_AGGREGATE_FACTORS)
            TRY(bytes_printf(out, "  %-12s%s\n", *name, a->text));
    }
    return ERR_NONE;
}
