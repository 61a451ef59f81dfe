/* Reads a tokenizer from the keys of a GGUF file, with the rules of llama.cpp (llama-vocab.cpp),
 * which repair common mistakes of converters. Ids must equal those of llama.cpp for every text, so
 * its defaults and exceptions are repeated here. */
#include "engine/tokens/tokenizer_parts.h"

#include "base/text.h"
#include "engine/model/gguf.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* Token types of the file format. */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

struct reading {
    struct tokenizer *t;
    struct gguf gguf;
    struct arena arena; /* arrays of the file, freed after reading */
    const struct gguf_str *text;
    const int32_t *type;
    size_t count;
    bool scores; /* SentencePiece scores instead of merges */
    struct bytes letters;
};

/* Names of control tokens for filling in the middle. llama.cpp treats them as control tokens
 * whatever type the file gives them. */
static bool is_control_name(const char *text)
{
    static const char *const names[] = {
        "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>",  "<PRE>",          "<|fim_suffix|>",
        "<fim-suffix>",   "<fim_suffix>", "<SUF>",         "<|fim_middle|>", "<fim-middle>",
        "<fim_middle>",   "<MID>",        "<|fim_pad|>",   "<fim-pad>",      "<fim_pad>",
        "<PAD>",          "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",     "<REPO>",
        "<reponame>",     "<|file_sep|>",
    };
    if (tokenizer_ends_by_name(text)) return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0) return true;
    return false;
}

/* token_type may be absent in old files; then all tokens are normal. */
static err read_arrays(struct reading *r)
{
    size_t types = 0;
    const struct gguf *g = &r->gguf;
    TRY(gguf_get_strings(&r->text, &r->count, g, "tokenizer.ggml.tokens", &r->arena));
    if (r->count == 0) return err_make(ERR_INPUT, "tokenizer.ggml.tokens is empty");
    TRY(tokenizer_make_room(r->t, r->count));
    if (gguf_find(g, "tokenizer.ggml.token_type"))
        TRY(gguf_get_i32s(&r->type, &types, g, "tokenizer.ggml.token_type", &r->arena));
    if (r->type && types < r->count)
        return err_make(ERR_INPUT, "tokenizer.ggml.token_type has %zu values for %zu tokens", types,
                        r->count);
    return ERR_NONE;
}

/* llama.cpp writes the names of byte tokens in upper case only. */
static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F');
}

/* The byte of a token such as "<0x0A>", or -1. Called for every token of a SentencePiece
 * vocabulary. */
static int byte_of_name(const char *text)
{
    if (strlen(text) != 6 || strncmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    if (!is_hex(text[3]) || !is_hex(text[4])) return -1;
    return (int)strtol(text + 3, NULL, 16);
}

/* The text that a token decodes to: its own text for special and user tokens; the bytes of its
 * letters in a byte-level vocabulary; else a byte, or its text with marks as spaces. Unused tokens
 * decode to nothing. */
static err read_bytes(struct tokenizer_token *token, struct reading *r, int type)
{
    struct bytes *b = &r->letters;
    size_t size = strlen(token->text);
    bytes_clear(b);
    int byte = byte_of_name(token->text);
    if (type == TYPE_UNUSED) {
        token->bytes = "";
        return ERR_NONE;
    }
    if (type == TYPE_CONTROL || type == TYPE_USER || type == TYPE_UNKNOWN) {
        TRY(bytes_append(b, token->text, size));
    } else if (!r->scores) {
        if (!tokenizer_unletter(b, token->text, size)) TRY(bytes_append(b, token->text, size));
    } else if (byte >= 0 && type == TYPE_BYTE) {
        TRY(bytes_append(b, &(uint8_t){(uint8_t)byte}, 1));
    } else {
        for (size_t i = 0; i < size; i++) {
            bool mark = strncmp(token->text + i, "\xE2\x96\x81", 3) == 0;
            TRY(bytes_append(b, mark ? " " : token->text + i, 1));
            i += mark ? 2 : 0;
        }
    }
    TRY(arena_text(&token->bytes, &r->t->arena, (const char *)b->data, b->size));
    token->size = (uint32_t)b->size;
    return ERR_NONE;
}

/* A token with a control name becomes a control token. Special and user tokens are also found in
 * text, except those that are not valid UTF-8, which no text can contain. */
static err read_token(struct reading *r, size_t id)
{
    struct tokenizer_token *token = &r->t->token[id];
    int type = r->type ? r->type[id] : TYPE_NORMAL;
    if (r->text[id].size == 0) return ERR_NONE;
    TRY(arena_text(&token->text, &r->t->arena, r->text[id].data, r->text[id].size));
    if (type != TYPE_CONTROL && is_control_name(token->text)) type = TYPE_CONTROL;
    token->special = type == TYPE_CONTROL || type == TYPE_UNKNOWN;
    TRY(read_bytes(token, r, type));
    bool found = text_is_utf8(r->text[id].data, r->text[id].size);
    if (found && (token->special || type == TYPE_USER)) {
        struct added_token added = {.text = token->text,
                                    .size = (uint32_t)r->text[id].size,
                                    .id = (int32_t)id,
                                    .special = token->special};
        TRY(added_put(&r->t->raw, &added));
    }
    struct bpe *b = &r->t->bpe;
    if (r->scores) return bpe_add_token(b, token->text, r->text[id].size, (int32_t)id);
    bytes_clear(&r->letters);
    if (!tokenizer_unletter(&r->letters, token->text, r->text[id].size)) return ERR_NONE;
    return bpe_add_token(b, (const char *)r->letters.data, r->letters.size, (int32_t)id);
}

/* A merge is "left right", split at the first space that is not the first byte. A merge of letters
 * that stand for no byte can never match and is skipped. The first of two equal merges counts,
 * unlike in Hugging Face files. */
static err read_merge(struct reading *r, struct gguf_str merge, uint32_t rank)
{
    const char *space = merge.size > 1 ? memchr(merge.data + 1, ' ', merge.size - 1) : NULL;
    if (!space) return err_make(ERR_INPUT, "tokenizer.ggml.merges[%u] is no pair", rank);
    size_t left = (size_t)(space - merge.data), right = merge.size - left - 1;
    struct bytes *b = &r->letters;
    bytes_clear(b);
    if (!tokenizer_unletter(b, merge.data, left)) return ERR_NONE;
    size_t cut = b->size;
    if (right == 0 || !tokenizer_unletter(b, space + 1, right)) return ERR_NONE;
    const char *text = (const char *)b->data;
    struct bpe_merge m = {.left = text,
                          .left_size = cut,
                          .right = text + cut,
                          .right_size = b->size - cut,
                          .rank = rank};
    return bpe_add_merge(&r->t->bpe, &m);
}

/* The position in the list is the rank. */
static err read_merges(struct reading *r)
{
    const struct gguf_str *merge;
    size_t count;
    TRY(gguf_get_strings(&merge, &count, &r->gguf, "tokenizer.ggml.merges", &r->arena));
    for (size_t i = 0; i < count; i++)
        TRY(read_merge(r, merge[i], (uint32_t)i));
    return ERR_NONE;
}

/* A SentencePiece vocabulary has a score per token instead of merges. */
static err read_scores(struct reading *r)
{
    const float *score;
    size_t count;
    TRY(gguf_get_f32s(&score, &count, &r->gguf, "tokenizer.ggml.scores", &r->arena));
    if (count < r->count)
        return err_make(ERR_INPUT, "tokenizer.ggml.scores has %zu values for %zu tokens", count,
                        r->count);
    return bpe_merge_by_score(&r->t->bpe, score, r->count);
}

/* Prepend and Replace of SentencePiece: the mark stands for a space. */
static void put_step(struct normalize *n, enum normalize_kind kind)
{
    n->step[n->count++] = (struct normalize_step){.kind = kind,
                                                  .pattern = " ",
                                                  .pattern_size = 1,
                                                  .content = "\xE2\x96\x81",
                                                  .content_size = 3};
}

/* Whether the list contains the name between spaces. */
static bool contains_any(const char *list, const char *name)
{
    char padded[80];
    (void)snprintf(padded, sizeof padded, " %.70s ", name);
    return strstr(list, padded) != NULL;
}

/* The kind of tokenizer. Files without tokenizer.ggml.pre use the pattern named "default", as in
 * llama.cpp. The names in the list below look words up as a whole first (ignore_merges). */
static err read_kind(struct reading *r)
{
    struct tokenizer *t = r->t;
    struct gguf_str model, pre = {.data = "default", .size = 7};
    TRY(gguf_get_str(&model, &r->gguf, "tokenizer.ggml.model"));
    TRY(gguf_opt_str(&pre, &r->gguf, "tokenizer.ggml.pre"));
    bool prefix = true;
    if (gguf_str_is(model, "llama")) {
        TRY(gguf_opt_bool(&prefix, &r->gguf, "tokenizer.ggml.add_space_prefix"));
        r->scores = true;
        if (prefix) put_step(&t->normalize, NORMALIZE_PREPEND);
        put_step(&t->normalize, NORMALIZE_REPLACE);
        t->strip_space = prefix;
        t->bpe.byte_fallback = true;
        (void)snprintf(t->kind, sizeof t->kind, "BPE by SentencePiece scores, byte fallback");
        return ERR_NONE;
    }
    if (!gguf_str_is(model, "gpt2"))
        return err_make(ERR_INPUT,
                        "tokenizer %.*s is not supported (byte-level BPE \"gpt2\" and SentencePiece"
                        " BPE \"llama\" are)",
                        (int)(model.size > 40 ? 40 : model.size), model.data);
    char name[72];
    (void)snprintf(name, sizeof name, "%.*s", (int)(pre.size > 71 ? 71 : pre.size), pre.data);
    TRY(split_named(&t->split, name));
    t->bpe.bytes = true;
    t->bpe.whole = contains_any(" llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2"
                                " jina-v5-nano tekken ",
                                name);
    (void)snprintf(t->kind, sizeof t->kind, "byte-level BPE, pre-tokenizer %s", name);
    return ERR_NONE;
}

/* bos 1 and eos 2 are the defaults of llama.cpp for SentencePiece, 11 for byte-level
 * vocabularies. */
static err read_special(struct reading *r)
{
    struct tokenizer *t = r->t;
    uint32_t bos = r->scores ? 1 : 11, eos = r->scores ? 2 : 11, end = UINT32_MAX;
    TRY(gguf_opt_u32(&bos, &r->gguf, "tokenizer.ggml.bos_token_id"));
    TRY(gguf_opt_u32(&eos, &r->gguf, "tokenizer.ggml.eos_token_id"));
    TRY(gguf_opt_u32(&end, &r->gguf, "tokenizer.ggml.eot_token_id"));
    if (bos < t->vocab) t->bos = (int32_t)bos;
    if (eos < t->vocab) t->eos = (int32_t)eos;
    if (end < t->vocab) t->token[end].ends = true;
    return vocab_template_read_gguf(t, &r->gguf);
}

/* The file does not say so, and llama.cpp recognises the model by its name. */
err tokenizer_gguf_strips(bool *out, const struct gguf *g)
{
    struct gguf_str name = {0};
    char lower[128] = {0};
    TRY(gguf_opt_str(&name, g, "general.name"));
    for (size_t i = 0; i < name.size && i < sizeof lower - 1; i++)
        lower[i] = (char)tolower((unsigned char)name.data[i]);
    *out = strstr(lower, "phi-3") || strstr(lower, "phi3");
    return ERR_NONE;
}

bool tokenizer_strips(const char *token)
{
    return strcmp(token, "<unk>") != 0 && strcmp(token, "<s>") != 0 &&
           strcmp(token, "<|endoftext|>") != 0;
}

static err apply_phi3(struct reading *r)
{
    bool strips = false;
    TRY(tokenizer_gguf_strips(&strips, &r->gguf));
    for (size_t i = 0; i < r->t->raw.count && strips; i++)
        r->t->raw.token[i].rstrip = tokenizer_strips(r->t->raw.token[i].text);
    return ERR_NONE;
}

/* Added tokens are sorted last, when all of them are known. */
static err read_all(struct reading *r)
{
    TRY(read_kind(r));
    TRY(read_arrays(r));
    for (size_t i = 0; i < r->count; i++)
        TRY(read_token(r, i));
    TRY(r->scores ? read_scores(r) : read_merges(r));
    bpe_seal(&r->t->bpe);
    TRY(apply_phi3(r));
    r->t->raw.order = ADDED_LONGEST;
    added_seal(&r->t->raw);
    return read_special(r);
}

/* Only the header of the file is opened: the tensors are not needed and may be missing. */
err vocab_gguf_read(struct tokenizer *t, const char *path)
{
    struct reading r = {.t = t, .letters = {.max = 1 << 20}};
    err e = gguf_open(&r.gguf, path, GGUF_HEADER_ONLY);
    if (!err_is(e)) {
        e = read_all(&r);
        if (err_is(e)) e = err_in(e, "%s", path);
    }
    bytes_close(&r.letters);
    arena_close(&r.arena);
    gguf_close(&r.gguf);
    return e;
}
