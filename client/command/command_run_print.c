/* The status of a run as tables or JSON: client/command/command_run.h. */
#include "base/text.h"
#include "client/command/command_run.h"
#include "client/command/remote_json.h"
#include "client/output/report.h"
#include "client/output/table.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Only the newest rounds are printed, because a run may have thousands. */
enum { RUN_HISTORY_ROWS = 12 };

typedef Fedlora__V1__RunStatus run_status;

/* --json prints the whole message, so that scripts do not depend on the columns of the tables. */
err command_run_print_message(const ProtobufCMessage *message)
{
    json_t *value = NULL;
    TRY(remote_json(&value, message));
    err e = report_json(value);
    json_decref(value);
    return e;
}

/* "-" for a value that does not exist: no member evaluated (no rows), or the data has no
 * completions to be right or wrong about (accuracy below 0). */
static err evaluation_cells(struct table *t, uint64_t rows_seen, double loss, double accuracy)
{
    TRY(rows_seen ? table_cell(t, "%.4f", loss) : table_cell(t, "-"));
    return rows_seen && accuracy >= 0 ? table_cell(t, "%.4f", accuracy) : table_cell(t, "-");
}

/* "training 3/20", "sending 12.0 MB of 90.3 MB", or one word. */
static void write_activity(char *out, size_t bytes, const Fedlora__V1__MemberStatus *m)
{
    char sent[32], size[32];
    text_size(sent, sizeof sent, m->sending_bytes);
    text_size(size, sizeof size, m->sending_size);
    if (m->sending_size > 0)
        snprintf(out, bytes, "sending %s of %s", sent, size);
    else if (strcmp(m->doing, "training") == 0 && m->steps > 0)
        snprintf(out, bytes, "training %" PRIu32 "/%" PRIu32, m->step, m->steps);
    else
        snprintf(out, bytes, "%.50s", m->doing);
}

/* A loss of 0 is not a measured loss: it means that the member has not trained yet, or that the run
 * is private and losses are not sent. */
static err print_members(const run_status *s)
{
    struct table t;
    err e;
    table_begin(&t, "llrrrrrrrr");
    static const char *const head[] = {"member", "activity", "rank",    "examples",  "weight",
                                       "loss",   "sent",     "fetched", "eval loss", "accuracy"};
    TRY_OUT(e, table_row(&t, head));
    for (size_t i = 0; i < s->n_members; i++) {
        const Fedlora__V1__MemberStatus *m = s->members[i];
        char activity[96], up[32], down[32];
        write_activity(activity, sizeof activity, m);
        text_size(up, sizeof up, m->bytes_up);
        text_size(down, sizeof down, m->bytes_down);
        TRY_OUT(e, table_cell(&t, "%s", m->id));
        TRY_OUT(e, table_cell(&t, "%s", activity));
        TRY_OUT(e, table_cell(&t, "%" PRIu32, m->rank));
        TRY_OUT(e, table_cell(&t, "%" PRIu64, m->examples));
        TRY_OUT(e, table_cell(&t, "%.3g %%", 100 * m->share));
        TRY_OUT(e, m->train_loss > 0 ? table_cell(&t, "%.4f", m->train_loss) : table_cell(&t, "-"));
        TRY_OUT(e, table_cell(&t, "%s", up));
        TRY_OUT(e, table_cell(&t, "%s", down));
        TRY_OUT(e, evaluation_cells(&t, m->eval_rows, m->eval_loss, m->eval_accuracy));
    }
    e = table_print(&t);
out:
    table_close(&t);
    return e;
}

/* The newest rounds; `error` is the error of the combination against the exact mean. */
static err print_history(const run_status *s)
{
    struct table t;
    err e;
    size_t first = s->n_history > RUN_HISTORY_ROWS ? s->n_history - RUN_HISTORY_ROWS : 0;
    table_begin(&t, "rrrrrrrrr");
    static const char *const head[] = {"round", "updates", "loss",      "change",  "error",
                                       "took",  "state",   "eval loss", "accuracy"};
    TRY_OUT(e, table_row(&t, head));
    for (size_t i = first; i < s->n_history; i++) {
        const Fedlora__V1__RoundStatus *r = s->history[i];
        char took[32], size[32];
        text_duration(took, sizeof took, r->took_ms);
        text_size(size, sizeof size, r->state_size);
        TRY_OUT(e, table_cell(&t, "%" PRIu32, r->round));
        TRY_OUT(e, table_cell(&t, "%" PRIu32, r->updates));
        TRY_OUT(e, r->train_loss > 0 ? table_cell(&t, "%.4f", r->train_loss) : table_cell(&t, "-"));
        bool reported = !isnan(r->update_norm); /* the report follows the round */
        TRY_OUT(e, reported ? table_cell(&t, "%.4g", r->update_norm) : table_cell(&t, "-"));
        TRY_OUT(e, reported ? table_cell(&t, "%.2g", r->error) : table_cell(&t, "-"));
        TRY_OUT(e, table_cell(&t, "%s", took));
        TRY_OUT(e, table_cell(&t, "%s", r->state_gone ? "removed" : size));
        TRY_OUT(e, evaluation_cells(&t, r->eval_rows, r->eval_loss, r->eval_accuracy));
    }
    e = table_print(&t);
out:
    table_close(&t);
    return e;
}

/* Values that an operator may have changed, unless all members are waited for without end. */
static void print_rules(const Fedlora__V1__RunConfig *c)
{
    char time[32], grace[32];
    bool skips = strcmp(c->absent, "skip") == 0;
    if (skips) printf("a round does not wait for members that are absent when it opens\n");
    if (c->quorum == 0 && c->deadline_ms == 0) return;
    text_duration(time, sizeof time, c->deadline_ms);
    text_duration(grace, sizeof grace, c->grace_ms);
    if (c->quorum == 0) {
        printf("a round closes with all updates; its deadline is %s\n", time);
        return;
    }
    if (c->deadline_ms == 0 && c->grace_ms == 0) {
        printf("a round closes with its first %" PRIu32 " update%s\n", c->quorum,
               c->quorum == 1 ? "" : "s");
        return;
    }
    printf("a round closes with all updates");
    if (c->grace_ms) printf(", or %s after it has %" PRIu32, grace, c->quorum);
    if (c->deadline_ms) printf(", or after %s with at least %" PRIu32, time, c->quorum);
    printf("\n");
}

void command_run_print_troubles(char *const *trouble, size_t count)
{
    for (size_t i = 0; i < count; i++)
        printf("! %s\n", trouble[i]);
}

/* The first lines answer the usual questions: which run, in which phase, and what is it waiting
 * for. */
err command_run_print(const run_status *s, bool json)
{
    if (json) return command_run_print_message(&s->base);
    const Fedlora__V1__RunConfig *c = s->config;
    if (c == NULL) return err_make(ERR_INPUT, "the coordinator's answer contains no run");
    command_run_print_troubles(s->troubles, s->n_troubles);
    printf("%s: %s, %s, round %" PRIu32 " of %" PRIu32 "\n", c->name, c->method, s->phase, s->round,
           c->rounds);
    if (s->waiting_for[0] != 0) printf("waiting for %s\n", s->waiting_for);
    if (c->cohort)
        printf("cohort: %" PRIu32 " updates close a round, %" PRIu32 " of %zu members are drawn\n",
               c->cohort, c->cohort + c->over_select, (size_t)s->member_count);
    print_rules(c);
    if (s->privacy[0] != 0) printf("privacy: %s\n", s->privacy);
    if (s->n_members > 0) {
        printf("\n");
        TRY(print_members(s));
        if (s->members_next)
            printf("and %zu more members (run status)\n", s->member_count - s->n_members);
    }
    if (s->n_history > 0) {
        printf("\n");
        TRY(print_history(s));
    }
    if (s->reports_skipped > 0)
        printf("\nreports skipped: %" PRIu32 " (not done before the next round closed)\n",
               s->reports_skipped);
    return ERR_NONE;
}
