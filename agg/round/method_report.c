/* Reports of a round; contract in method.h. */
#include "agg/round/method.h"

#include "base/json.h"

#include <math.h>

void method_report_close(struct method_report *report)
{
    arena_close(&report->arena);
    *report = (struct method_report){0};
}

static double ratio(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static bool put_real(json_t *o, const char *key, double value)
{
    return json_object_set_new(o, key, json_real(value)) == 0;
}

static bool put_count(json_t *o, const char *key, uint32_t value)
{
    return json_object_set_new(o, key, json_integer((json_int_t)value)) == 0;
}

static json_t *row_json(const struct method_report_row *row, bool measured)
{
    json_t *o = json_object();
    double kept = row->state_norm * row->state_norm, cut = row->dropped * row->dropped;
    bool fine = o && put_count(o, "rank", row->rank) && put_count(o, "sent", row->sent) &&
                put_real(o, "dropped", row->dropped);
    if (fine && measured)
        fine = put_real(o, "update_norm", row->update_norm) && put_real(o, "error", row->error) &&
               put_real(o, "relative_error", ratio(row->error, row->update_norm)) &&
               put_real(o, "state_norm", row->state_norm) &&
               put_real(o, "energy_kept", cut > 0 ? kept / (kept + cut) : 1); /* no 0 / 0 */
    if (fine && row->pairs)
        fine = put_real(o, "cosine_mean", row->cosine_mean) &&
               put_real(o, "cosine_least", row->cosine_least) && put_count(o, "pairs", row->pairs);
    if (fine && row->directions)
        fine = put_count(o, "directions", row->directions) &&
               put_count(o, "intruders", row->intruders);
    if (fine && row->module) fine = json_object_set_new(o, "module", json_string(row->module)) == 0;
    if (fine) return o;
    json_decref(o);
    return NULL;
}

static bool add_members(json_t *all, const struct method_report *report)
{
    json_t *list = json_array();
    bool fine = list != NULL;
    for (size_t i = 0; i < report->member_count && fine; i++) {
        const struct method_report_member *m = &report->member[i];
        fine = json_array_append_new(list, json_pack("{s:s, s:f, s:f}", "member", m->member,
                                                     "weight", m->weight, "norm", m->norm)) == 0;
    }
    if (fine && report->member_count) fine = json_object_set(all, "members", list) == 0;
    json_decref(list);
    return fine;
}

err method_report_json(struct bytes *out, const struct method_report *report)
{
    json_t *all = row_json(&report->total, report->measured), *list = json_array();
    bool fine = all && list;
    for (size_t i = 0; i < report->count && fine; i++)
        fine = json_array_append_new(list, row_json(&report->row[i], report->measured)) == 0;
    fine = fine && json_object_set(all, "modules", list) == 0 && add_members(all, report);
    err e = fine ? json_write(out, all) : err_make(ERR_MACHINE, "no memory for a report");
    json_decref(list);
    json_decref(all);
    return e;
}
