#include "base/file.h"
#include "base/limits.h"
#include "engine/tokens/tokenizer_parts.h"

#include <errno.h>
#include <stdlib.h>

/* The tokenizer is closed as a whole after a failure, so the readers need not undo anything. */
err tokenizer_open(struct tokenizer **out, const char *base_path)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t) return err_sys(ENOMEM, "tokenizer");
    t->bos = t->eos = -1;
    bpe_init(&t->bpe);
    pthread_mutex_init(&t->lock, NULL);
    err e = file_is_dir(base_path) ? vocab_hf_read(t, base_path) : vocab_gguf_read(t, base_path);
    if (err_is(e)) {
        tokenizer_close(t);
        return e;
    }
    tokenizer_mark_ends(t);
    *out = t;
    return ERR_NONE;
}

/* A tokenizer that exists but cannot be read is an error. */
err tokenizer_open_if_any(struct tokenizer **out, const char *base_path)
{
    char path[LIMIT_PATH_BYTES];
    if (file_is_dir(base_path)) {
        TRY(file_join(path, sizeof path, base_path, "tokenizer.json"));
        if (!file_exists(path)) return ERR_NONE;
    }
    return tokenizer_open(out, base_path);
}
