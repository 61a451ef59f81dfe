/* Saves an adapter in memory as a PEFT directory. */
#ifndef CLIENT_ADAPTER_SAVE_H
#define CLIENT_ADAPTER_SAVE_H

#include "engine/adapter.h"

/* The place and the form of the result. */
struct adapter_save_options {
    const char *path;
    const char *base; /* recorded as base_model_name_or_path, by its whole path; may be NULL */
    const char *root; /* of the names: adapter_names.h; NULL is "model." */
    bool replace;
    int threads;
};
/* A plain adapter (A and B only) is written as it is. PEFT has no place for a carry or R; such an
 * adapter is folded into one exact pair per module, and a Fedlora state with all factors
 * separate is written to the same directory, so that training can continue from it. */
#define ADAPTER_SAVE_STATE "state.safetensors"
/* ERR_INPUT if the path exists and `replace` is false. */
err adapter_save_peft(const struct adapter *ad, const struct adapter_save_options *o);

#endif
