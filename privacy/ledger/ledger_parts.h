/* Parts shared by writing and reading a ledger; for ledger*.c only. */
#ifndef PRIVACY_LEDGER_PARTS_H
#define PRIVACY_LEDGER_PARTS_H

#include "base/json.h"
#include "privacy/ledger/ledger.h"

enum { LEDGER_VERSION = 2, LEDGER_SIGNED_BYTES = 17 + DIGEST_BYTES };

extern const char ledger_domain[17]; /* with its zero */
struct digest ledger_hash(const void *text, size_t size);
void ledger_signed(uint8_t out[LEDGER_SIGNED_BYTES], const struct digest *hash);

#endif
