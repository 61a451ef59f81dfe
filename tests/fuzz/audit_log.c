/* An untrusted audit log, or manifest, is checked without a crash. A log is proven only if it has
 * the lines of the seed, because hashes cover every byte of a line; so every change has findings,
 * or cuts whole lines off the end. */
#include "lineage/audit_verify.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/audit.jsonl", NULL};
const int fuzz_runs = 3000;

static void count(void *context, uint64_t seq, const char *file, size_t row, const char *text)
{
    (void)seq, (void)row;
    if (strcmp(file, "fuzz") != 0 || !*text) abort();
    ++*(uint64_t *)context;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t findings = 0;
    struct audit_line_read head = {0};
    struct audit_verify v = {.found = count, .context = &findings};
    const char *text = (const char *)data, *end = size ? memchr(text, '\n', size) : NULL;
    /* The key of a log that begins with a head is taken for the right one. */
    err e = end ? audit_line_parse(&head, text, (size_t)(end - text)) : ERR_NONE;
    if (err_is(e) && e.kind != ERR_INPUT && e.kind != ERR_MACHINE) abort();
    v.key = (const uint8_t(*)[32])head.key;
    v.keys = head.signs && head.signature;
    audit_verify_add(&v, "fuzz", text, size);
    audit_verify_end(&v);
    if (findings != v.findings) abort();
    if (v.proven && (v.proven < v.first || v.proven > v.last || !v.heads)) abort();
    if (!findings && size && v.lines != v.last - v.first + 1) abort();
    return 0;
}
