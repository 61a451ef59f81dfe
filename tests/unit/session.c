/* A member's session against a coordinator that follows a script. */
#include "tests/support/session_fixture.h"

Test(session, trains_a_round_sends_it_and_ends_with_the_run)
{
    static const enum task script[] = {WAIT, TRAIN, WAIT, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    struct adapter_file state = {0};
    start(&f, script);
    f.options.run = NULL;
    FIXTURE_OK(session_run(&r, &f.options));
    cr_assert_str_eq(r.run, "r");
    cr_assert_str_eq(r.outcome, "finished");
    cr_assert_eq(r.rounds_trained, 1);
    cr_assert_eq(r.bytes_up, f.update.size);
    cr_assert_eq(r.bytes_down, f.state_file.size);
    cr_assert(f.examples[0] == 4 && f.submitted == 4 && atomic_load(&f.hellos) == 1);
    FIXTURE_OK(file_write(f.update_path, f.update.data, f.update.size, true));
    FIXTURE_OK(adapter_file_map(&state, f.state_path));
    const struct method_expect expect = {
        .state = &state, .member = "a", .round = 1, .rank = 2, .alpha = 4};
    FIXTURE_OK(method_check_update(method_find("flora"), f.update_path, &expect));
    adapter_file_close(&state);
    finish(&f);
}

/* A run that continues another one has its states; this state is of run r. */
Test(session, refuses_a_state_of_another_run_than_the_coordinator_named)
{
    static const enum task script[] = {TRAIN, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    f.origin = "first";
    err e = session_run(&r, &f.options);
    cr_expect(strstr(e.text, "belongs to run \"r\", expected \"first\""), "%s", e.text);
    finish(&f);
}

Test(session, refuses_a_name_that_would_lead_out_of_its_folder)
{
    static const enum task script[] = {TRAIN, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    f.origin = "../../etc/passwd";
    err e = session_run(&r, &f.options);
    cr_expect_eq(e.kind, ERR_INPUT, "%s", e.text);
    cr_expect(strstr(e.text, "the coordinator's answer to Hello is not valid"), "%s", e.text);
    finish(&f);
}

Test(session, sends_a_finished_update_again_without_training_and_trains_the_same_bytes)
{
    static const enum task script[] = {TRAIN, TRAIN, FINISHED, TRAIN, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    f.refuse_update = true;
    err e = session_run(&r, &f.options);
    cr_assert_eq(e.kind, ERR_REFUSED, "%s", e.text);
    struct digest first = f.digest;
    f.refuse_update = false;
    FIXTURE_OK(session_run(&r, &f.options));
    cr_assert_eq(r.rounds_trained, 0);
    cr_assert(digest_equal(&first, &f.digest));
    FIXTURE_OK(session_run(&r, &f.options));
    cr_assert_eq(r.rounds_trained, 1, "what a run that has ended used is not kept");
    cr_assert(digest_equal(&first, &f.digest), "training again gave other bytes");
    finish(&f);
}

Test(session, gives_up_a_round_that_is_over)
{
    static const enum task script[] = {TRAIN, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    f.abandon = true;
    f.steps = 1000000;
    FIXTURE_OK(session_run(&r, &f.options));
    cr_assert_eq(r.rounds_trained, 0);
    cr_assert_eq(atomic_load(&f.submits), 0);
    finish(&f);
}

Test(session, says_hello_again_to_a_coordinator_that_has_forgotten_it)
{
    static const enum task script[] = {NOT_JOINED, TRAIN, NOT_JOINED, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    FIXTURE_OK(session_run(&r, &f.options));
    cr_assert_eq(atomic_load(&f.hellos), 3);
    finish(&f);
}

/* The coordinator asks for pauses of 1 ms. */
Test(session, pauses_between_calls_whatever_the_coordinator_says)
{
    static const enum task script[] = {WAIT, WAIT, WAIT, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    uint64_t began = text_now_ms();
    FIXTURE_OK(session_run(&r, &f.options));
    cr_expect_geq(text_now_ms() - began, 300);
    finish(&f);
}

Test(session, keeps_the_last_state_where_the_user_wants_it)
{
    static const enum task script[] = {FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    struct digest have;
    char kept[160];
    start(&f, script);
    f.options.output = f.update_path;
    snprintf(kept, sizeof kept, "%s/r.kept.safetensors", f.work);
    FIXTURE_OK(file_make_dirs(f.work));
    FIXTURE_OK(file_write(kept, "of an earlier run", 17, false));
    FIXTURE_OK(session_run(&r, &f.options));
    FIXTURE_OK(digest_of_file(&have, f.update_path));
    cr_assert(digest_equal(&have, &f.state));
    finish(&f);
}

/* The second call after each fault is made with the certificate in memory, which still works. */
Test(session, waits_for_a_certificate_that_can_be_used)
{
    static const enum task script[] = {HALF_RENEWED, WAIT, EXPIRED, RENEWED, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    char cert[160], key[160];
    start(&f, script);
    copy_cert(&f, "a", "a");
    snprintf(cert, sizeof cert, "%s/a.pem", f.dir);
    snprintf(key, sizeof key, "%s/a.key", f.dir);
    f.options.remote.cert = cert;
    f.options.remote.key = key;
    FIXTURE_OK(session_run(&r, &f.options));
    cr_expect_str_eq(r.outcome, "finished");
    finish(&f);
}

static void refuses(const enum task *script, const char *member, bool spoil, const char *text)
{
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    f.member = member;
    f.spoil = spoil;
    err e = session_run(&r, &f.options);
    cr_assert_eq(e.kind, ERR_INPUT, "%d: %s", e.kind, e.text);
    cr_assert(strstr(e.text, text) != NULL, "\"%s\" does not say \"%s\"", e.text, text);
    finish(&f);
}

Test(session, takes_no_nonsense_from_a_coordinator)
{
    static const enum task train[] = {TRAIN}, other[] = {OF_ANOTHER_RUN}, cut[] = {SHORT_DIGEST},
                           nothing[] = {NOTHING}, huge[] = {HUGE_STATE};
    refuses(huge, "a", false, "the state has 8589934592 bytes, at most");
    refuses(train, "b", false, "answer to Hello");
    refuses(other, "a", false, "expected run r");
    refuses(cut, "a", false, "20 bytes, expected 32");
    refuses(nothing, "a", false, "unknown task");
    refuses(train, "a", true, "a different digest");
}

/* The first promise of the coordinator holds, even if a later answer differs. */
Test(session, lets_no_later_answer_take_privacy_back)
{
    static const enum task again[] = {NOT_JOINED, EVALUATE}, evaluate[] = {EVALUATE};
    static const char *const later[] = {NULL, "none", "example"};
    for (size_t i = 0; i < sizeof later / sizeof *later; i++) {
        struct fake f = {.unit = "client", .unit_again = later[i]};
        struct session_result r = {0};
        start(&f, again);
        err e = session_run(&r, &f.options);
        cr_assert_eq(e.kind, ERR_INPUT, "%d: %s", e.kind, e.text);
        cr_assert(strstr(e.text, "run r: its privacy settings changed since this member joined"),
                  "%s", e.text);
        finish(&f);
    }
    struct fake f = {.unit = "client"};
    struct session_result r = {0};
    start(&f, evaluate);
    err e = session_run(&r, &f.options);
    cr_assert(strstr(e.text, "asks for an evaluation, which the run's privacy does not allow"),
              "%s", e.text);
    finish(&f);
}

/* Rows that teach, that do not, and `late` ones whose only learned token the run cuts off. */
static void write_some_rows(const struct fake *f, int teach, int not, int late)
{
    struct bytes text = {.max = 10000};
    for (int i = 0; i < teach; i++)
        FIXTURE_OK(bytes_printf(&text, "{\"input_ids\":[5,6,7],\"labels\":[-100,6,7]}\n"));
    for (int i = 0; i < not ; i++)
        FIXTURE_OK(bytes_printf(&text, "{\"input_ids\":[5,6],\"labels\":[5,-100]}\n"));
    for (int i = 0; i < late; i++)
        FIXTURE_OK(bytes_printf(&text, "{\"input_ids\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,9],"
                                       "\"labels\":[-100,-100,-100,-100,-100,-100,-100,-100,-100,"
                                       "-100,-100,-100,-100,-100,-100,-100,9]}\n"));
    FIXTURE_OK(file_write(f->data, text.data, text.size, true));
    bytes_close(&text);
}

/* Hello comes before the run's options are known, so the number is corrected by a second one. */
Test(session, reports_the_rows_that_teach_as_its_weight)
{
    static const enum task script[] = {TRAIN, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    write_some_rows(&f, 3, 5, 2);
    f.options.eval_data = f.data;
    FIXTURE_OK(session_run(&r, &f.options));
    cr_expect_eq(atomic_load(&f.hellos), 2);
    cr_expect(f.examples[0] == 5 && f.examples[1] == 3, "%d, %d", (int)f.examples[0],
              (int)f.examples[1]);
    cr_expect(f.eval_rows[0] == 5 && f.eval_rows[1] == 3);
    cr_expect_eq(f.submitted, 3);
    finish(&f);
}

static void cannot_train(int not, int late, const char *run, const char *report, int hellos)
{
    static const enum task script[] = {TRAIN, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    write_some_rows(&f, 0, not, late);
    f.options.run = run;
    err e = session_run(&r, &f.options);
    cr_expect_eq(e.kind, ERR_INPUT, "%d: %s", e.kind, e.text);
    cr_expect(strstr(e.text, "rows.jsonl:1: none of the 2 rows has a token to learn"), "%s",
              e.text);
    cr_expect_eq(atomic_load(&f.hellos), hellos);
    cr_expect_str_eq(f.cannot_train, report);
    finish(&f);
}

Test(session, reports_that_it_cannot_train_and_does_not_join)
{
    cannot_train(2, 0, "r", "r: none of its 2 rows of training data has a token to learn", 0);
    cannot_train(2, 0, NULL, ": none of its 2 rows of training data has a token to learn", 0);
    cannot_train(1, 1, "r", "r: none of its 2 rows of training data has a token to learn", 1);
}

/* The budget of its records does not count what the report reveals about them. */
Test(session, reports_nothing_about_the_data_that_a_ledger_protects)
{
    static const enum task script[] = {FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    write_some_rows(&f, 0, 2, 0);
    f.options.ledger = "ledger.jsonl";
    err e = session_run(&r, &f.options);
    cr_expect_eq(e.kind, ERR_INPUT, "%d: %s", e.kind, e.text);
    cr_expect_str_eq(f.cannot_train, "");
    write_some_rows(&f, 3, 5, 0);
    (void)err_is(session_run(&r, &f.options)); /* the run has no privacy, so the member leaves it */
    cr_expect_eq(f.examples[0], 8);
    finish(&f);
}

Test(session, ends_when_the_user_interrupts)
{
    static const enum task script[] = {TRAIN, FINISHED};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    stop_asked = 1;
    err e = session_run(&r, &f.options);
    stop_asked = 0;
    cr_assert_eq(e.kind, ERR_STOPPED);
    cr_assert_eq(atomic_load(&f.submits), 0);
    finish(&f);
}

/* The same run again stands for a new one: the member has forgotten it after its end. */
Test(session, a_member_that_stays_serves_one_run_after_another)
{
    static const enum task script[] = {WAIT,  GREET, TRAIN,    FINISHED, WAIT,
                                       GREET, TRAIN, FINISHED, WAIT,     INTERRUPT};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    f.options.run = NULL;
    f.options.stay = true;
    err e = session_run(&r, &f.options);
    stop_asked = 0;
    cr_expect_eq(e.kind, ERR_STOPPED, "%s", e.text);
    cr_expect_eq(atomic_load(&f.hellos), 2);
    cr_expect_eq(atomic_load(&f.submits), 2);
    finish(&f);
}

/* A run that ends with an error is left, and the member goes on without it. */
Test(session, a_member_that_stays_outlives_a_run_that_refuses_it)
{
    static const enum task script[] = {GREET, EVALUATE, WAIT, INTERRUPT};
    struct fake f = {0};
    struct session_result r = {0};
    start(&f, script);
    f.options.run = NULL;
    f.options.stay = true;
    f.unit = "client";
    err e = session_run(&r, &f.options);
    stop_asked = 0;
    cr_expect_eq(e.kind, ERR_STOPPED, "%s", e.text);
    cr_expect_eq(atomic_load(&f.next), 4);
    finish(&f);
}
