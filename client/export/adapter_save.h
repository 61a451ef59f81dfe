/* Saves an adapter in memory as a PEFT directory. */
#ifndef CLIENT_ADAPTER_SAVE_H
#define CLIENT_ADAPTER_SAVE_H

#include "engine/adapter.h"

/* Where and how to save. */
struct adapter_save_options {
    const char *path;
    const char *base; /* recorded as base_model_name_or_path, by its whole path; may be NULL */
    bool replace;
    int threads;
};
/* A plain adapter (A and B only) is written as it is. PEFT has no place for a carry or R; such an
 * adapter is folded into one exact pair per module, and a Fedlora state is written beside it with
 * all factors separate, from which training can continue. */
#define ADAPTER_SAVE_STATE "state.safetensors"
/* An adapter of A and B alone is written as it is; with a carry or R, the whole change is folded
 * into one exact pair a module, and ADAPTER_SAVE_STATE beside it keeps carry, A, B and R apart: a
 * state to go on training from. */
err adapter_save_peft(const struct adapter *ad, const struct adapter_save_options *o);

#endif
