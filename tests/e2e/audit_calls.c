/* The remote procedures AuditLog and Manifest: their answers, and each refusal. */
#include "base/file.h"
#include "client/session/remote.h"
#include "lineage/audit_verify.h"
#include "lineage/manifest.h"
#include "proto/message.h"
#include "proto/rpc_path.h"
#include "tests/support/three_members.h"

#include <stdlib.h>

static err ask_log(Fedlora__V1__AuditLogReply **reply, struct fake_member *m, const char *file,
                   uint64_t offset)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(audit_log),
                                                &fedlora__v1__audit_log_reply__descriptor};
    Fedlora__V1__AuditLogRequest request = FEDLORA__V1__AUDIT_LOG_REQUEST__INIT;
    request.file = (char *)(uintptr_t)file;
    request.offset = offset;
    return remote_call(reply, m->client, &method, &request.base, 0);
}

static err ask_manifest(struct fake_member *m, const char *run, const struct digest *state,
                        size_t digest_bytes, const char *path)
{
    Fedlora__V1__ManifestRequest request = FEDLORA__V1__MANIFEST_REQUEST__INIT;
    request.run = (char *)(uintptr_t)run;
    request.state_digest = (ProtobufCBinaryData){digest_bytes, (uint8_t *)(uintptr_t)state->byte};
    const struct remote_made made = {.method = RPC_PATH_ADMIN(manifest),
                                     .request = &request.base,
                                     .path = path,
                                     .replace = true};
    return remote_make(m->client, &made);
}

static void count(void *context, uint64_t seq, const char *file, size_t row, const char *text)
{
    ++*(size_t *)context;
    fprintf(stderr, "line %llu (%s:%zu): %s\n", (unsigned long long)seq, file, row, text);
}

static void open_key(uint8_t key[32])
{
    char path[SUPPORT_PATH_BYTES];
    snprintf(path, sizeof path, "%s/audit/audit.pub", federation.store);
    ok(ledger_public_open(key, path));
}

Test(audit_calls, an_operator_gets_all_lines_and_a_member_gets_none)
{
    Fedlora__V1__AuditLogReply *reply = NULL;
    struct fake_member member;
    uint8_t key[32];
    size_t findings = 0;
    struct audit_verify v = {
        .key = (const uint8_t(*)[32])key, .keys = 1, .found = count, .context = &findings};
    begin("");
    open_key(key);
    ok(create_run("flora", 0));
    ok(ask_log(&reply, &ops, "", 0));
    cr_assert_gt(reply->lines.len, 0);
    audit_verify_add(&v, reply->file, (char *)reply->lines.data, reply->lines.len);
    audit_verify_end(&v);
    cr_expect(findings == 0 && v.first == 1 && v.last >= 2, "%zu findings", findings);
    cr_expect_eq(reply->offset, reply->lines.len);
    refused(ask_log(&reply, &ops, "2020-01.jsonl", 0), ERR_REFUSED,
            "has no file \"2020-01.jsonl\"");
    refused(ask_log(&reply, &ops, "../fedlora.db-and-more", 0), ERR_REFUSED, "has no file");
    open_member(&member, "m0", 2);
    refused(ask_log(&reply, &member, "", 0), ERR_REFUSED, "only an admin may call this");
    message_free(reply);
    fake_close(&member);
    end();
}

static void differs(void *context, const char *text)
{
    (void)context;
    cr_expect_fail("%s", text);
}

Test(audit_calls, a_manifest_is_of_a_published_state_and_for_operators)
{
    char path[SUPPORT_PATH_BYTES];
    struct fake_member member;
    struct digest other = digest_of("no state", 8);
    struct manifest_state state = {.run = "r", .method = "flora"};
    json_t *manifest = NULL;
    uint8_t key[32];
    begin("");
    snprintf(path, sizeof path, "%s/manifest.json", federation.dir);
    ok(create_run("flora", 0));
    state.digest = run_everyone(0, 0);
    ok(ask_manifest(&ops, "r", &state.digest, DIGEST_BYTES, path));
    open_key(key);
    ok(manifest_read(&manifest, path, key));
    cr_expect_eq(manifest_compare(manifest, &state, differs, NULL), 0);
    const json_t *rounds = json_object_get(manifest, "rounds");
    cr_expect_eq(json_array_size(rounds), ROUNDS + 1);
    const json_t *last = json_array_get(rounds, ROUNDS);
    cr_expect_eq(json_array_size(json_object_get(last, "updates")), MEMBERS);
    json_decref(manifest);
    refused(ask_manifest(&ops, "r", &other, DIGEST_BYTES, path), ERR_STATE,
            "it has not published state");
    refused(ask_manifest(&ops, "r", &other, 7, path), ERR_REFUSED, "digest: 7 bytes");
    refused(ask_manifest(&ops, "x", &other, DIGEST_BYTES, path), ERR_REFUSED, "there is no run");
    open_member(&member, "m0", 2);
    refused(ask_manifest(&member, "r", &state.digest, DIGEST_BYTES, path), ERR_REFUSED,
            "only an admin may call this");
    fake_close(&member);
    end();
}
