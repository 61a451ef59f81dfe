/* Reads a Unigram model of a tokenizer.json. Its vocabulary is a list of [text, score]. */
#include "engine/tokens/tokenizer_parts.h"

#include "base/json.h"
#include "base/limits.h"

#include <string.h>

/* A token without text, which no text contains, is only decoded. */
static err read_token(struct tokenizer *t, const json_t *pair, size_t id)
{
    const char *text = json_string_value(json_array_get(pair, 0));
    const json_t *score = json_array_get(pair, 1);
    if (!text || !json_is_number(score))
        return err_make(ERR_INPUT, "model.vocab[%zu]: expected a text and a score", id);
    TRY(arena_text(&t->token[id].text, &t->arena, text, strlen(text)));
    const struct unigram_token token = {.text = t->token[id].text,
                                        .size = (uint32_t)strlen(text),
                                        .id = (int32_t)id,
                                        .score = json_number_value(score)};
    return token.size > 0 ? unigram_add(&t->unigram, &token) : ERR_NONE;
}

err unigram_read(struct tokenizer *t, const json_t *model)
{
    const json_t *vocab = json_object_get(model, "vocab"), *item;
    int64_t unknown = -1;
    size_t i;
    if (!json_is_array(vocab) || json_array_size(vocab) == 0)
        return err_make(ERR_INPUT, "model.vocab: expected a list of tokens and scores");
    TRY(json_opt_int(&unknown, model, "unk_id", 0, (int64_t)json_array_size(vocab) - 1, "model"));
    TRY(json_opt_bool(&t->unigram.byte_fallback, model, "byte_fallback", "model"));
    TRY(tokenizer_make_room(t, json_array_size(vocab)));
    json_array_foreach(vocab, i, item) TRY(read_token(t, item, i));
    t->unigram.unknown = (int32_t)unknown;
    unigram_seal(&t->unigram);
    return ERR_NONE;
}
