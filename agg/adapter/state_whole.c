#include "agg/adapter/state_whole.h"

#include "agg/adapter/adapter_file.h"

err state_whole_needs(bool *needed, struct digest *digest, const char *path)
{
    struct adapter_file state = {0};
    TRY(adapter_file_map(&state, path));
    bool needs = adapter_file_needs_frozen(&state);
    err e = needs ? digest_parse(digest, state.meta.frozen) : ERR_NONE;
    if (!err_is(e)) *needed = needs;
    adapter_file_close(&state);
    return e;
}

err state_whole_write_own(const char *out, const char *state_path, const char *kept_path)
{
    struct adapter_file state = {0}, kept = {0};
    err e;
    TRY_OUT(e, adapter_file_open(&state, state_path));
    TRY_OUT(e, adapter_file_open(&kept, kept_path));
    TRY_OUT(e, adapter_file_replace(&state, &kept));
    e = adapter_file_write(out, &state.meta, state.module, state.count, /*replace*/ true);
out:
    adapter_file_close(&state);
    adapter_file_close(&kept);
    return e;
}

err state_whole_write(const char *out, const char *state_path, const char *frozen_path,
                      const struct digest *digest)
{
    struct adapter_file state = {0}, frozen = {0};
    char text[DIGEST_TEXT_BYTES];
    err e;
    digest_text(text, digest);
    TRY_OUT(e, adapter_file_open(&state, state_path));
    TRY_OUT(e, adapter_file_open(&frozen, frozen_path));
    TRY_OUT(e, adapter_file_join(&state, &frozen, text));
    e = adapter_file_write(out, &state.meta, state.module, state.count, /*replace*/ true);
out:
    adapter_file_close(&state);
    adapter_file_close(&frozen);
    return e;
}
