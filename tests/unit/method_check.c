/* Updates that do not match the request are refused by name, on arrival and again when combined. */
#include "agg/round/method.h"

#include "tests/support/method_fixture.h"

TestSuite(method_check, .init = make_dir, .fini = remove_dir);

static struct sender good = {
    .method = "flora", .member = "a", .round = 3, .rank = 4, .alpha = 8, .seed = 1};

static err check(const struct sender *x)
{
    struct adapter_file state = {0};
    ok(adapter_file_map(&state, at("state", 1)));
    struct method_expect expect = {
        .state = &state, .member = "a", .round = 3, .rank = 4, .alpha = 8};
    if (x) send(at("update", 0), x);
    err e = method_check_update(method_find("flora"), at("update", 0), &expect);
    adapter_file_close(&state);
    return e;
}

Test(method_check, an_update_that_is_not_what_was_asked_is_refused_by_name)
{
    struct method_start start = start_of(4, 8);
    struct sender x;
    ok(method_start(method_find("flora"), at("state", 1), &start));
    ok(check(&good));
    x = good, x.round = 2;
    refused(check(&x), ERR_STATE, "update: round 2, expected round 3");
    x = good, x.round = 4;
    refused(check(&x), ERR_STATE, "round 4, expected round");
    x = good, x.rank = 8;
    refused(check(&x), ERR_INPUT,
            "update: tensor base_model.model.model.layers.0.k_proj.lora_A.weight: shape (8, 24), "
            "expected (4, 24)");
    x = good, x.alpha = 9;
    refused(check(&x), ERR_INPUT, "alpha 9, expected 8");
    x = good, x.rslora = true;
    refused(check(&x), ERR_INPUT, "rslora is true, expected false");
    x = good, x.member = "b";
    refused(check(&x), ERR_INPUT, "fedlora.member is b, expected a");
    x = good, x.method = "fedit";
    refused(check(&x), ERR_INPUT, "fedlora.method is fedit");
    x = good, x.frozen = "abc";
    refused(check(&x), ERR_INPUT, "fedlora.frozen is abc, expected none");
    x = good, x.modules = 2;
    refused(check(&x), ERR_INPUT, "module model.layers.0.k_proj is missing");
    ok(file_write(at("update", 0), "{}", 2, true));
    refused(check(NULL), ERR_INPUT, "update: is a JSON file, expected a safetensors file");
    char *bytes;
    size_t size;
    send(at("update", 0), &good);
    ok(file_read_all(&bytes, &size, at("update", 0), 1 << 20));
    ok(file_write(at("update", 0), bytes, size - 4, true));
    refused(check(NULL), ERR_INPUT, "update: MetadataIncompleteBuffer");
    memset(bytes + size - 4, 0xff, 4);
    ok(file_write(at("update", 0), bytes, size, true));
    refused(check(NULL), ERR_INPUT, "lora_B.weight: value 63 is NaN");
    struct method_next next = {.state_path = at("state", 1), .count = 1};
    struct contribution c[] = {{"a", 1, at("update", 0)}, {"a", 1, at("update", 0)}};
    struct method_report report = {0};
    next.contribution = c;
    refused(method_next(&report, method_find("flora"), at("state", 2), &next), ERR_INPUT, "NaN");
    cr_expect_not(file_exists(at("state", 2)), "half a state was left");
    free(bytes);
    next.count = 2;
    refused(method_next(&report, method_find("flora"), at("state", 2), &next), ERR_INPUT,
            "member a has two updates");
    next.count = 1;
    c[0].weight = 0;
    refused(method_next(&report, method_find("flora"), at("state", 2), &next), ERR_INPUT,
            "weight 0");
    refused(method_next(&report, method_find("fedit"), at("state", 2), &next), ERR_INPUT, "weight");
}

/* fed-sb: a member's block of R, or a larger one, or another base's frozen factors. */
Test(method_check, a_small_matrix_is_taken_in_the_block_its_member_trains)
{
    const struct method *m = method_find("fed-sb");
    struct method_start start = frozen_start(12);
    struct adapter_file state = {0};
    struct sender x = {.method = "fed-sb", .member = "a", .frozen = frozen_digest, .round = 3};
    ok(method_start(m, at("state", 1), &start));
    ok(adapter_file_map(&state, at("state", 1)));
    struct method_expect expect = {.state = &state, .member = "a", .round = 3, .rank = 6};
    x.rank = 6;
    send(at("update", 0), &x);
    ok(method_check_update(m, at("update", 0), &expect));
    expect.rank = 0; /* the whole R */
    refused(method_check_update(m, at("update", 0), &expect), ERR_INPUT,
            "lora_R.weight: shape (6, 6), expected (8, 8)");
    x.rank = 12; /* 8 where the module is no larger */
    send(at("update", 0), &x);
    ok(method_check_update(m, at("update", 0), &expect));
    expect.rank = 40;
    ok(method_check_update(m, at("update", 0), &expect));
    x.frozen = "0123";
    send(at("update", 0), &x);
    refused(method_check_update(m, at("update", 0), &expect), ERR_INPUT,
            "fedlora.frozen is 0123, expected");
    x.frozen = frozen_digest;
    x.round = 1;
    send(at("update", 0), &x);
    refused(method_check_update(m, at("update", 0), &expect), ERR_STATE,
            "round 1, expected round 3");
    expect.behind = 2;
    ok(method_check_update(m, at("update", 0), &expect));
    adapter_file_close(&state);
}

Test(method_check, only_what_the_round_trains_is_taken)
{
    struct method_start start = start_of(4, 8);
    struct adapter_file state = {0}, sent = {0};
    struct adapter_file_meta meta;
    ok(method_start(method_find("fedit"), at("state", 1), &start));
    ok(adapter_file_map(&state, at("state", 1)));
    struct sender x = {.method = "fedit", .member = "a", .round = 1, .rank = 4, .alpha = 8};
    struct method_expect expect = {
        .state = &state, .member = "a", .round = 1, .rank = 4, .alpha = 8};
    send(at("update", 0), &x);
    ok(method_check_update(method_find("fedit"), at("update", 0), &expect));
    ok(adapter_file_open(&sent, at("update", 0)));
    meta = sent.meta;
    struct adapter_file_module m[MODULES];
    float R[16] = {1};
    memcpy(m, sent.module, sizeof m);
    m[1].factor[ADAPTER_FILE_R] = (struct adapter_file_factor){.f32 = R, .rows = 4, .cols = 4};
    ok(adapter_file_write(at("update", 1), &meta, m, MODULES, true));
    refused(method_check_update(method_find("fedit"), at("update", 1), &expect), ERR_INPUT,
            "lora_R.weight must not be sent in this round");
    m[1].factor[ADAPTER_FILE_R] = m[0].factor[ADAPTER_FILE_B] = (struct adapter_file_factor){0};
    ok(adapter_file_write(at("update", 1), &meta, m, MODULES, true));
    refused(method_check_update(method_find("fedit"), at("update", 1), &expect), ERR_INPUT,
            "layers.0.k_proj.lora_B.weight is missing");
    meta.kind = ADAPTER_FILE_STATE;
    ok(adapter_file_write(at("update", 1), &meta, sent.module, MODULES, true));
    refused(method_check_update(method_find("fedit"), at("update", 1), &expect), ERR_INPUT,
            "fedlora.kind is not \"update\"");
    adapter_file_close(&sent);
    adapter_file_close(&state);
}

Test(method_check, a_part_of_the_states_pair_is_taken_at_the_states_scale)
{
    const struct method *m = method_find("flexlora");
    struct adapter_file state = {0};
    struct sender x = {.method = "flexlora", .member = "a", .round = 1, .rank = 4, .alpha = 8};
    struct method_expect expect = {
        .member = "a", .round = 1, .rank = 4, .alpha = 8, .state = &state};
    begin(m); /* rank 32, scale 2 */
    ok(adapter_file_map(&state, at("state", 1)));
    send(at("update", 0), &x);
    ok(method_check_update(m, at("update", 0), &expect));
    x.alpha = expect.alpha = 64;
    send(at("update", 0), &x);
    refused(method_check_update(m, at("update", 0), &expect), ERR_INPUT,
            "rank 4 at scale 16, expected the state's scale 2");
    x.rank = expect.rank = 40;
    x.alpha = expect.alpha = 80;
    send(at("update", 0), &x);
    refused(method_check_update(m, at("update", 0), &expect), ERR_INPUT,
            "lora_A.weight: shape (40, 24), expected (32, 24)");
    adapter_file_close(&state);
    m = method_find("ffa");
    begin(m);
    ok(adapter_file_map(&state, at("state", 1)));
    x = (struct sender){
        .method = "ffa", .member = "a", .frozen = frozen_digest, .round = 1, .rank = 9, .alpha = 9};
    expect.rank = 9;
    expect.alpha = 9;
    send(at("update", 0), &x); /* 8 columns where the module has no more */
    ok(method_check_update(m, at("update", 0), &expect));
    x.alpha = expect.alpha = 18;
    send(at("update", 0), &x);
    refused(method_check_update(m, at("update", 0), &expect), ERR_INPUT,
            "rank 8 at scale 2, expected the state's scale 1");
    adapter_file_close(&state);
}

Test(method_check, a_late_update_is_taken_only_where_it_says_all_that_its_member_ran)
{
    static const char *const refused_by[] = {"rolora", "fedex", "flexlora", "fedsvd"};
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        bool takes = method_takes_late(m);
        for (size_t i = 0; i < sizeof refused_by / sizeof *refused_by; i++)
            cr_expect(!takes || strcmp(*name, refused_by[i]) != 0, "%s takes late updates", *name);
        struct method_start start = begin(m);
        struct adapter_file state = {0};
        struct sender x = {.method = *name,
                           .member = "a",
                           .frozen = m->frozen ? frozen_digest : NULL,
                           .round = 1,
                           .rank = start.rank,
                           .alpha = start.alpha};
        struct method_expect expect = {.state = &state,
                                       .member = "a",
                                       .round = 3,
                                       .behind = 2,
                                       .rank = start.rank,
                                       .alpha = start.alpha};
        ok(adapter_file_map(&state, at("state", 1)));
        send(at("update", 0), &x);
        if (takes)
            ok(method_check_update(m, at("update", 0), &expect));
        else
            refused(method_check_update(m, at("update", 0), &expect), ERR_STATE,
                    "round 1, expected round 3");
        adapter_file_close(&state);
    }
}
