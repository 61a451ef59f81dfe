/* Ledgers from anyone: read or refused with the line named; one that is read replays or is refused,
 * and a changed byte is never read at all, so whatever is read is what the seed's writer signed. */
#include "privacy/statement.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/ledger.jsonl", NULL};
const int fuzz_runs = 3000;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct ledger ledger = {0};
    struct statement statement;
    err e = ledger_read(&ledger, (const char *)data, size, "fuzz");
    if (err_is(e)) {
        if (e.kind != ERR_INPUT || strncmp(e.text, "fuzz:", 5) != 0) abort();
        return 0;
    }
    e = statement_replay(&statement, &ledger, "fuzz");
    if (err_is(e) && e.kind != ERR_INPUT) abort();
    ledger_close(&ledger);
    return 0;
}
