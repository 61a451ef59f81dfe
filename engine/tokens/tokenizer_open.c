#include "base/file.h"
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
