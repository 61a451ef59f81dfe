#include "client/session/session_consent.h"

#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "proto/message.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_BYTES = 1 << 14, MESSAGE_BYTES = 1 << 16 };
static const char folder[] = "runs", approve_word[] = "approve", decline_word[] = "decline";

/* Run names contain no '/', which the coordinator's answer to Hello was checked for. */
static err path_of(char out[LIMIT_PATH_BYTES], const char *work, const char *run, const char *end)
{
    char dir[LIMIT_PATH_BYTES - 256], name[LIMIT_NAME_BYTES + 16];
    snprintf(name, sizeof name, "%s%s", run, end);
    TRY(file_join(dir, sizeof dir, work, folder));
    return file_join(out, LIMIT_PATH_BYTES, dir, name);
}

/* ---- what a run is */

static err add_message(struct digest_stream *s, const ProtobufCMessage *message)
{
    struct bytes packed = {.max = MESSAGE_BYTES};
    err e = message ? message_pack(&packed, message) : ERR_NONE;
    if (!err_is(e)) digest_add(s, packed.data, packed.size);
    bytes_close(&packed);
    return e;
}

/* The method, the base, the training and the privacy. The modules are not among them, because the
 * coordinator may not know their full names yet; the policy has a rule for them. */
err session_consent_of(struct session_consent_run *out, const Fedlora__V1__HelloReply *hello,
                       const char *base)
{
    struct session_consent_run run = {.rounds = hello->rounds};
    const Fedlora__V1__Privacy *p = hello->privacy;
    struct digest_stream s;
    snprintf(run.run, sizeof run.run, "%s", hello->run);
    snprintf(run.method, sizeof run.method, "%s", hello->method);
    snprintf(run.privacy, sizeof run.privacy, "none");
    if (p)
        snprintf(run.privacy, sizeof run.privacy, "unit %.20s, epsilon %.4g, delta %.3g", p->unit,
                 p->epsilon, p->delta);
    digest_begin(&s);
    digest_add(&s, hello->method, strlen(hello->method) + 1);
    digest_add(&s, base, strlen(base) + 1);
    TRY(add_message(&s, hello->training ? &hello->training->base : NULL));
    TRY(add_message(&s, p ? &p->base : NULL));
    run.terms = digest_end(&s);
    *out = run;
    return ERR_NONE;
}

/* ---- the file of a run */

static err write_json(const char *path, json_t *value)
{
    struct bytes text = {.max = FILE_BYTES};
    if (!value) return err_make(ERR_MACHINE, "%s: no memory to write it", path);
    err e = json_write(&text, value);
    if (!err_is(e)) e = file_write(path, text.data, text.size, /*replace*/ true);
    bytes_close(&text);
    json_decref(value);
    return e;
}

static err copy_text(char *out, size_t bytes, json_t *from, const char *key, const char *path)
{
    const char *text = NULL;
    TRY(json_get_str(&text, from, key, path));
    snprintf(out, bytes, "%s", text);
    return ERR_NONE;
}

static err read_run(struct session_consent_run *out, const char *path)
{
    struct session_consent_run run = {0};
    char terms[DIGEST_TEXT_BYTES + 1];
    int64_t rounds = 0, since = 0;
    json_t *value = NULL;
    err e;
    TRY(json_open(&value, path, FILE_BYTES));
    TRY_OUT(e, copy_text(run.run, sizeof run.run, value, "run", path));
    TRY_OUT(e, copy_text(run.method, sizeof run.method, value, "method", path));
    TRY_OUT(e, copy_text(run.privacy, sizeof run.privacy, value, "privacy", path));
    TRY_OUT(e, copy_text(run.state, sizeof run.state, value, "state", path));
    TRY_OUT(e, copy_text(run.why, sizeof run.why, value, "why", path));
    TRY_OUT(e, copy_text(terms, sizeof terms, value, "terms", path));
    TRY_OUT(e, digest_parse(&run.terms, terms));
    TRY_OUT(e, json_get_int(&rounds, value, "rounds", 0, UINT32_MAX, path));
    TRY_OUT(e, json_get_int(&since, value, "since_ms", 0, INT64_MAX, path));
    run.rounds = (uint32_t)rounds;
    run.since_ms = (uint64_t)since;
    *out = run;
out:
    json_decref(value);
    return e;
}

err session_consent_note(const char *work, const struct session_consent_run *run)
{
    char path[LIMIT_PATH_BYTES], dir[LIMIT_PATH_BYTES], terms[DIGEST_TEXT_BYTES];
    struct session_consent_run is = *run, was = {0};
    TRY(file_join(dir, sizeof dir, work, folder));
    TRY(file_make_dirs(dir));
    TRY(path_of(path, work, run->run, ".json"));
    bool known = file_exists(path) && !err_is(read_run(&was, path));
    bool same = known && strcmp(was.state, is.state) == 0 && digest_equal(&was.terms, &is.terms);
    if (same && was.rounds == is.rounds && strcmp(was.why, is.why) == 0) return ERR_NONE;
    is.since_ms = same ? was.since_ms : text_wall_ms();
    digest_text(terms, &is.terms);
    return write_json(path, json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I}", "run", is.run,
                                      "method", is.method, "privacy", is.privacy, "state", is.state,
                                      "why", is.why, "terms", terms, "rounds",
                                      (json_int_t)is.rounds, "since_ms", (json_int_t)is.since_ms));
}

/* ---- the answer */

/* Damaged files are no answer, so that the administrator is asked again. */
static enum session_consent_answer read_answer(struct digest *terms, uint32_t *rounds,
                                               const char *path)
{
    char word[16] = "", text[DIGEST_TEXT_BYTES + 1] = "";
    int64_t most = 0;
    json_t *value = NULL;
    if (!file_exists(path) || err_is(json_open(&value, path, FILE_BYTES))) return CONSENT_NONE;
    err e = copy_text(word, sizeof word, value, "answer", path);
    if (!err_is(e)) e = copy_text(text, sizeof text, value, "terms", path);
    if (!err_is(e)) e = digest_parse(terms, text);
    if (!err_is(e)) e = json_get_int(&most, value, "rounds", 0, UINT32_MAX, path);
    json_decref(value);
    if (err_is(e)) return CONSENT_NONE;
    *rounds = (uint32_t)most;
    if (strcmp(word, decline_word) == 0) return CONSENT_DECLINED;
    return strcmp(word, approve_word) == 0 ? CONSENT_APPROVED : CONSENT_NONE;
}

enum session_consent_answer session_consent_answer(const char *work,
                                                   const struct session_consent_run *run)
{
    char path[LIMIT_PATH_BYTES];
    struct digest terms;
    uint32_t rounds = 0;
    if (err_is(path_of(path, work, run->run, ".answer"))) return CONSENT_NONE;
    enum session_consent_answer answer = read_answer(&terms, &rounds, path);
    bool of_these = answer != CONSENT_NONE && digest_equal(&terms, &run->terms);
    if (answer == CONSENT_APPROVED && run->rounds > rounds) of_these = false;
    return of_these ? answer : CONSENT_NONE;
}

err session_consent_give(const char *work, const char *name, bool approve)
{
    char path[LIMIT_PATH_BYTES], terms[DIGEST_TEXT_BYTES];
    struct session_consent_run run;
    if (!text_is_name(name, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT, "\"%.80s\" is not the name of a run", name);
    TRY(path_of(path, work, name, ".json"));
    if (!file_exists(path))
        return err_make(ERR_INPUT, "run %s is not known here: `fedlora runs` lists those that are",
                        name);
    TRY(read_run(&run, path));
    digest_text(terms, &run.terms);
    TRY(path_of(path, work, name, ".answer"));
    return write_json(path,
                      json_pack("{s:s, s:s, s:I, s:I}", "answer",
                                approve ? approve_word : decline_word, "terms", terms, "rounds",
                                (json_int_t)run.rounds, "time_ms", (json_int_t)text_wall_ms()));
}

/* ---- the list */

/* Runs whose state can still lead to something keep their files. */
static bool is_open(const struct session_consent_run *run)
{
    static const char *const open[] = {"waits", "declined", "joined"};
    for (size_t i = 0; i < sizeof open / sizeof *open; i++)
        if (strcmp(run->state, open[i]) == 0) return true;
    return false;
}

void session_consent_forget(const char *work, uint64_t age_ms)
{
    struct arena arena = {0};
    struct session_consent_run *run = NULL;
    char path[LIMIT_PATH_BYTES];
    uint64_t now = text_wall_ms();
    size_t count = 0;
    if (err_is(session_consent_list(&run, &count, work, &arena))) count = 0;
    for (size_t i = 0; i < count; i++) {
        if (is_open(&run[i]) || now < run[i].since_ms || now - run[i].since_ms < age_ms) continue;
        if (!err_is(path_of(path, work, run[i].run, ".json"))) (void)file_disk.unlink(path);
        if (!err_is(path_of(path, work, run[i].run, ".answer"))) (void)file_disk.unlink(path);
    }
    arena_close(&arena);
}

static int by_name(const void *a, const void *b)
{
    const struct session_consent_run *x = a, *y = b;
    return strcmp(x->run, y->run);
}

/* An answer that was given meanwhile counts, also if join does not run now. */
static void apply_answer(struct session_consent_run *run, const char *work)
{
    enum session_consent_answer answer = session_consent_answer(work, run);
    bool open = strcmp(run->state, "waits") == 0 || strcmp(run->state, "declined") == 0;
    if (open && answer == CONSENT_APPROVED) snprintf(run->state, sizeof run->state, "approved");
    if (strcmp(run->state, "waits") == 0 && answer == CONSENT_DECLINED)
        snprintf(run->state, sizeof run->state, "declined");
}

err session_consent_list(struct session_consent_run **out, size_t *count, const char *work,
                         struct arena *arena)
{
    char path[LIMIT_PATH_BYTES], dir_path[LIMIT_PATH_BYTES - 256];
    struct session_consent_run *list = NULL;
    size_t n = 0;
    TRY(arena_take(&list, arena, LIMIT_RUNS, sizeof *list));
    TRY(file_join(dir_path, sizeof dir_path, work, folder));
    DIR *dir = opendir(dir_path);
    if (!dir && errno != ENOENT) return err_sys(errno, "%s", dir_path);
    for (const struct dirent *entry; dir && n < LIMIT_RUNS && (entry = readdir(dir));) {
        if (!text_ends_with(entry->d_name, ".json")) continue;
        if (err_is(file_join(path, sizeof path, dir_path, entry->d_name))) continue;
        if (err_is(read_run(&list[n], path))) continue;
        apply_answer(&list[n++], work);
    }
    if (dir) closedir(dir);
    qsort(list, n, sizeof *list, by_name);
    *out = list;
    *count = n;
    return ERR_NONE;
}
