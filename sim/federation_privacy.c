#include "sim/federation_privacy.h"

#include "base/file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Instead of the name that certificates give to a federation. */
static const char federation_name[] = "simulated";

/* The largest noise keeps any budget, so nothing is searched for. */
err federation_privacy_check(const Fedlora__V1__RunConfig *config)
{
    struct arena arena = {0};
    struct method_options options;
    struct private_terms terms;
    struct plan_summary summary;
    if (!run_privacy_central(config)) return ERR_NONE;
    run_config_options(&options, config);
    err e = run_privacy_terms(&terms, config, &options, NULL, &arena);
    terms.plan.noise = terms.plan.basis_noise = 0x1p12;
    terms.plan.force = true;
    if (!err_is(e)) e = plan_check(&summary, &terms.plan);
    arena_close(&arena);
    return e;
}

uint64_t federation_privacy_examples(const struct federation *f, size_t member)
{
    const struct dataset *data = &f->fleet->member[member].data;
    return run_privacy_local(f->run->config) ? data->count : data_teaching(data);
}

static err keep_path(const char **out, struct federation *f, const char *folder, const char *name)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, folder, name));
    return arena_text(out, &f->arena, path, strlen(path));
}

err federation_privacy_key(struct federation *f, const Fedlora__V1__RunConfig *config,
                           const char *folder, bool new)
{
    const char *public = NULL;
    if (!config->privacy) return ERR_NONE;
    TRY(keep_path(&f->config.ledger_key, f, folder, "ledger.key"));
    TRY(keep_path(&public, f, folder, "ledger.pub"));
    if (!file_exists(f->config.ledger_key)) return ledger_key_make(f->config.ledger_key, public);
    if (!new) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s: exists already; a simulation makes a key of its own, so choose "
                    "another folder with -o",
                    f->config.ledger_key);
}

static err ledger_path(const char **out, struct federation *f, const char *dir, const char *id)
{
    char name[LIMIT_NAME_BYTES + 8];
    snprintf(name, sizeof name, "%s.jsonl", id);
    return keep_path(out, f, dir, name);
}

static err join(struct federation *f, size_t i, const char *dir)
{
    const struct fleet_member *member = &f->fleet->member[i];
    struct session_options options = {.ledger_key = f->config.ledger_key, .simulated = true};
    struct rpc_peer self = {.role = RPC_CLIENT};
    Fedlora__V1__HelloReply hello;
    snprintf(self.federation, sizeof self.federation, "%s", federation_name);
    snprintf(self.id, sizeof self.id, "%s", member->id);
    TRY(ledger_path(&options.ledger, f, dir, member->id));
    run_hello_reply(&hello, f->run, i);
    err e = session_privacy_open(&f->privacy[i], &options, &hello, &self, member->data.count);
    return err_is(e) ? err_in(e, "member %s", member->id) : e;
}

err federation_privacy_join(struct federation *f, const char *folder)
{
    char dir[LIMIT_PATH_BYTES];
    if (!run_privacy_local(f->run->config)) return ERR_NONE;
    TRY(file_join(dir, sizeof dir, folder, "ledgers"));
    TRY(file_make_dirs(dir));
    TRY(arena_take(&f->privacy, &f->arena, f->fleet->members, sizeof *f->privacy));
    for (size_t i = 0; i < f->fleet->members; i++)
        TRY(join(f, i, dir));
    return ERR_NONE;
}

/* The start of line `after` + 1. */
static const char *skip_lines(const char *text, uint64_t after)
{
    for (; after; after--) {
        const char *end = strchr(text, '\n');
        if (!end) return text + strlen(text);
        text = end + 1;
    }
    return text;
}

/* All new lines at once: a round adds one or two. */
static err copy_ledger(struct federation *f, size_t member)
{
    const struct ledger_head *held = NULL;
    struct run_ledger_part part = {.federation = federation_name};
    const char *path = f->privacy[member].ledger.o.ledger;
    char *text = NULL;
    size_t size = 0;
    TRY(run_take_ledger(&held, f->run, member, &part));
    TRY(file_read_all(&text, &size, path, LEDGER_FILE_BYTES_MAX));
    const char *rest = skip_lines(text, held->count);
    part.from = held->count + 1;
    part.lines = (ProtobufCBinaryData){size - (size_t)(rest - text), (uint8_t *)(uintptr_t)rest};
    err e = run_take_ledger(&held, f->run, member, &part);
    free(text);
    return e;
}

/* ---- a charged update ---- */

/* A second name of an update that is being charged. A member keeps what it has charged until the
 * coordinator has it, so that it is not charged twice: training again would give other bytes,
 * because its noise is drawn anew. */
static err kept_path(char path[LIMIT_PATH_BYTES], const struct federation *f,
                     const struct federation_task *task)
{
    const char *ledger = f->privacy[task->member].ledger.o.ledger;
    int n = snprintf(path, LIMIT_PATH_BYTES, "%s.%u", ledger, task->round.round);
    return n < LIMIT_PATH_BYTES ? ERR_NONE : err_make(ERR_INPUT, "%.80s...: too long", ledger);
}

/* After a crash between charge and receipt the kept update takes the place of the new one. */
static err keep(struct pool_task *done, const char *kept)
{
    struct stat st;
    bool again = file_exists(kept);
    if (again && file_disk.unlink(done->path) != 0) return err_sys(errno, "%s", done->path);
    if (link(again ? kept : done->path, again ? done->path : kept) != 0)
        return err_sys(errno, "%s", kept);
    if (!again) return ERR_NONE;
    if (stat(done->path, &st) != 0) return err_sys(errno, "%s", done->path);
    done->size = (uint64_t)st.st_size;
    return digest_of_file(&done->digest, done->path);
}

err federation_privacy_charge(struct federation *f, const struct federation_task *task,
                              struct pool_task *done)
{
    struct session_update update = {.values = done->result.values};
    struct digest given = {0};
    char kept[LIMIT_PATH_BYTES];
    if (!f->privacy) return ERR_NONE;
    TRY(kept_path(kept, f, task));
    TRY(keep(done, kept));
    update.digest = done->digest;
    update.size = done->size;
    if (task->has_frozen) given = task->frozen;
    TRY(session_privacy_charge(&f->privacy[task->member], task->round.round, &update, &given));
    return copy_ledger(f, task->member);
}

void federation_privacy_sent(const struct federation *f, const struct federation_task *task)
{
    char kept[LIMIT_PATH_BYTES];
    if (f->privacy && !err_is(kept_path(kept, f, task))) file_disk.unlink(kept);
}

err federation_spent(double *epsilon, struct federation *f)
{
    struct arena arena = {0};
    const char *member = NULL;
    *epsilon = NAN;
    if (!f->run->config->privacy) return ERR_NONE;
    if (run_privacy_central(f->run->config))
        return store_ledger_spent(epsilon, f->shop.store, f->run->id);
    err e = store_copies_spent(epsilon, &member, f->shop.store, f->run->id, &arena);
    arena_close(&arena);
    return e;
}
