#include "client/command/remote_json.h"

#include "fedlora.pb-c.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

Test(remote_json, has_every_field_by_its_name)
{
    Fedlora__V1__RunStatus status = FEDLORA__V1__RUN_STATUS__INIT;
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    Fedlora__V1__MemberStatus member = FEDLORA__V1__MEMBER_STATUS__INIT, *members[] = {&member};
    Fedlora__V1__RoundStatus round = FEDLORA__V1__ROUND_STATUS__INIT, *rounds[] = {&round};
    char *targets[] = {(char *)(uintptr_t) "q", (char *)(uintptr_t) "v"};
    uint8_t digest[3] = {0x00, 0xab, 0x0f};
    config.name = (char *)(uintptr_t) "triage";
    config.targets = targets;
    config.n_targets = 2;
    config.alpha = 0.1;
    config.rslora = true;
    config.base_digest = (ProtobufCBinaryData){3, digest};
    member.id = (char *)(uintptr_t) "ann";
    member.bytes_up = 5000000000;
    round.train_loss = NAN;
    round.report_json = (char *)(uintptr_t) "{\"error\":0.5}";
    status.config = &config;
    status.members = members;
    status.n_members = 1;
    status.history = rounds;
    status.n_history = 1;
    json_t *value = NULL;
    cr_assert_eq(remote_json(&value, &status.base).kind, ERR_OK);
    json_t *c = json_object_get(value, "config");
    cr_assert_str_eq(json_string_value(json_object_get(c, "name")), "triage");
    cr_assert_str_eq(json_string_value(json_object_get(c, "base_digest")), "00ab0f");
    cr_assert_str_eq(json_string_value(json_array_get(json_object_get(c, "targets"), 1)), "v");
    cr_assert_eq(json_real_value(json_object_get(c, "alpha")), 0.1);
    cr_assert(json_is_true(json_object_get(c, "rslora")));
    cr_assert(json_is_null(json_object_get(c, "training")));
    json_t *m = json_array_get(json_object_get(value, "members"), 0);
    cr_assert_eq(json_integer_value(json_object_get(m, "bytes_up")), 5000000000);
    json_t *r = json_array_get(json_object_get(value, "history"), 0);
    cr_assert(json_is_null(json_object_get(r, "train_loss")), "NaN is no JSON");
    json_t *report = json_object_get(r, "report_json");
    cr_assert_eq(json_real_value(json_object_get(report, "error")), 0.5);
    json_decref(value);
}

Test(remote_json, shows_only_the_part_of_a_oneof_that_is_set)
{
    Fedlora__V1__Task task = FEDLORA__V1__TASK__INIT;
    Fedlora__V1__WaitTask wait = FEDLORA__V1__WAIT_TASK__INIT;
    json_t *value = NULL;
    task.kind_case = FEDLORA__V1__TASK__KIND_WAIT;
    task.wait = &wait;
    wait.retry_ms = 7;
    cr_assert_eq(remote_json(&value, &task.base).kind, ERR_OK);
    cr_assert_eq(json_object_size(value), 1);
    cr_assert_eq(json_integer_value(json_object_get(json_object_get(value, "wait"), "retry_ms")),
                 7);
    json_decref(value);
}
