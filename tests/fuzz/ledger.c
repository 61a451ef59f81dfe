/* Ledgers from anyone: read, or refused with the line named. A changed byte is never read, so
 * whatever is read is what the seed's writer signed; ledger_signed.c has writers that lie. */
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
