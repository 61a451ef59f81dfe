/* fedlora budget verify: replay a privacy ledger and print a statement for an auditor.
 *
 * The ledger is a hash chain of signed lines. It is read from its first line, every hash and
 * signature is checked, and epsilon is recomputed from the recorded releases; the totals that the
 * lines contain are not trusted. Three facts cannot be seen in the file and are compared with
 * options: the key (--key), the end of the chain (--head), and the draws of the cohorts
 * (--cohorts). */
#include "base/file.h"
#include "base/json.h"
#include "client/command/command.h"
#include "client/output/report.h"
#include "privacy/ledger/statement.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct budget_verify_command {
    struct command_common common;
    const char *key, *head, *cohorts;
};

/* A line has about 500 bytes, so this is more than any run writes. */
enum { LEDGER_BYTES_MAX = 256 << 20, COHORTS_BYTES_MAX = 64 << 20 };

static const struct option_row rows[] = {
    {.flag = "key",
     .kind = OPTION_TEXT,
     .at = offsetof(struct budget_verify_command, key),
     .value = "FILE",
     .help = "public key (PEM) that must have signed the ledger"},
    {.flag = "head",
     .kind = OPTION_TEXT,
     .at = offsetof(struct budget_verify_command, head),
     .value = "HASH",
     .help = "expected hash of the last line, from another source; detects removed lines"},
    {.flag = "cohorts",
     .kind = OPTION_TEXT,
     .at = offsetof(struct budget_verify_command, cohorts),
     .value = "FILE",
     .help = "cohorts.json of fedlora run audit; checks its seeds against the ledger and prints "
             "the members of each round"},
};

/* A shortened ledger is still a valid chain, so only a head noted elsewhere shows removed lines.
 * The statement says which of the facts were compared. */
static err compare(struct statement *s, const struct budget_verify_command *o, const char *path)
{
    uint8_t key[32];
    struct digest head;
    if (o->key) {
        TRY(ledger_public_open(key, o->key));
        if (memcmp(key, s->ledger->public, sizeof key) != 0)
            return err_make(ERR_INPUT, "%s: signed by a different key than %s", path, o->key);
        s->key_known = true;
    }
    if (o->head) {
        TRY(digest_parse(&head, o->head));
        if (!digest_equal(&head, &s->ledger->head.hash))
            return err_make(
                ERR_INPUT,
                "%s: the hash of the last line is not --head: lines were removed or added", path);
        s->head_known = true;
    }
    return ERR_NONE;
}

/* The draws are repeated from the seeds; the seeds must hash to the anchor of the ledger's first
 * line, which was written before any member was drawn. */
static err read_cohorts(json_t **out, const struct statement *s, const char *path)
{
    json_t *shown = NULL;
    if (!path) return ERR_NONE;
    TRY(json_open(&shown, path, COHORTS_BYTES_MAX));
    err e = statement_cohorts(out, s, shown, path);
    json_decref(shown);
    return e;
}

/* For each round, the number of members drawn and their ids. */
static void print_cohorts(const json_t *cohorts)
{
    size_t i, k;
    json_t *row, *id;
    printf("\nCohorts, drawn again from their seeds\n");
    json_array_foreach((json_t *)(uintptr_t)cohorts, i, row)
    {
        json_t *drawn = json_object_get(row, "drawn");
        printf("  - round %d: %zu", (int)json_integer_value(json_object_get(row, "round")),
               json_array_size(drawn));
        json_array_foreach(drawn, k, id) printf("%s%s", k ? ", " : ": ", json_string_value(id));
        printf("\n");
    }
}

/* The page for people or one document for programs, with the same content. */
static err print(const struct statement *s, const json_t *cohorts, bool as_json)
{
    struct bytes page = {.max = 1 << 20};
    json_t *json = NULL;
    if (as_json) {
        TRY(statement_json(&json, s));
        if (cohorts) json_object_set(json, "cohorts", (json_t *)(uintptr_t)cohorts);
        err e = report_json(json);
        json_decref(json);
        return e;
    }
    err e = statement_text(&page, s);
    if (!err_is(e)) fputs((const char *)page.data, stdout);
    if (!err_is(e) && cohorts) print_cohorts(cohorts);
    bytes_close(&page);
    return e;
}

/* Any failed check ends the command with an error and no statement is printed. */
static err budget_verify_run(void *options, const struct option_list *arguments,
                             struct arena *arena)
{
    (void)arena;
    const struct budget_verify_command *o = options;
    const char *path = arguments->item[0];
    struct ledger ledger = {0};
    struct statement s = {0};
    json_t *cohorts = NULL;
    char *text = NULL;
    size_t size = 0;
    TRY(file_read_all(&text, &size, path, LEDGER_BYTES_MAX));
    err e = ledger_read(&ledger, text, size, path);
    free(text);
    if (!err_is(e)) e = statement_replay(&s, &ledger, path);
    if (!err_is(e)) e = compare(&s, o, path);
    if (!err_is(e)) e = read_cohorts(&cohorts, &s, o->cohorts);
    if (!err_is(e)) e = print(&s, cohorts, o->common.json);
    json_decref(cohorts);
    ledger_close(&ledger);
    return e;
}

const struct command command_budget_verify = {
    .name = "budget verify",
    .purpose = "verify a privacy ledger and print a statement for an auditor",
    .usage = "LEDGER [--key FILE] [--head HASH] [--cohorts FILE]",
    .example = "fedlora budget verify ledger.jsonl --key ledger.pub.pem",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct budget_verify_command),
    .least = 1,
    .most = 1,
    .run = budget_verify_run,
};
