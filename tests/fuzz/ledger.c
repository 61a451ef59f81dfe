/* An untrusted ledger is read, or refused with the number of the line. Signatures cover every
 * byte, so a ledger that is read is the seed itself; ledger_signed.c tests false statements with
 * valid signatures. */
#include "privacy/ledger/ledger.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/ledger.jsonl", NULL};
const int fuzz_runs = 3000;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ledger ledger = {0};
    err e = ledger_read(&ledger, (const char *)data, size, "fuzz");
    if (err_is(e) && (e.kind != ERR_INPUT || strncmp(e.text, "fuzz:", 5) != 0)) abort();
    ledger_close(&ledger);
    return 0;
}
