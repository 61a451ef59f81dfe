/* Reads a tokenizer from the files of a Hugging Face directory. tokenizer.json has the algorithm
 * and the vocabulary; the other files name the special tokens and the chat template. Everything
 * that would change ids or text and is not implemented is refused by name. */
#include "engine/tokens/tokenizer_parts.h"

#include "base/file.h"
#include "base/json.h"
#include "base/limits.h"

#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES_MAX = 16 << 20 };

struct reading {
    struct tokenizer *t;
    const char *dir;
    struct bytes letters;
    /* From the `decoder` of tokenizer.json: */
    bool byte_level, byte_fallback;
    const char *mark; /* text that replaces a space, or NULL */
};

/* A missing optional file leaves *out NULL. */
static err open_json(json_t **out, const char *dir, const char *name, bool required)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    if (!required && !file_exists(path)) return ERR_NONE;
    return json_open(out, path, required ? LIMIT_JSON_BYTES : CONFIG_BYTES_MAX);
}

/* JSON texts are freed with their document, so they are copied to the arena. */
static err text_of(const char **out, struct reading *r, const char *text)
{
    return arena_text(out, &r->t->arena, text, strlen(text));
}

/* The decoder is reduced to four switches, which all supported tokenizers need: bytes as letters,
 * bytes as <0xNN>, a mark for spaces, and one space at the start that is removed. Fuse only joins
 * tokens and needs nothing here. The order of the steps in a Sequence does not matter for these. */
static err read_decoder(struct reading *r, const json_t *json, int depth)
{
    const char *type;
    if (!json || json_is_null(json)) return ERR_NONE;
    TRY(json_get_str(&type, json, "type", "decoder"));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(json, "decoders"), *item;
        size_t i;
        if (!json_is_array(list) || depth > 4)
            return err_make(ERR_INPUT, "decoder.decoders: expected a list, at most 4 deep");
        json_array_foreach(list, i, item) TRY(read_decoder(r, item, depth + 1));
    } else if (strcmp(type, "ByteLevel") == 0) {
        r->byte_level = true;
    } else if (strcmp(type, "ByteFallback") == 0) {
        r->byte_fallback = true;
    } else if (strcmp(type, "Replace") == 0) {
        const char *to = json_string_value(json_object_get(json, "content"));
        const char *from =
            json_string_value(json_object_get(json_object_get(json, "pattern"), "String"));
        if (!from || !to || strcmp(to, " ") != 0)
            return err_make(ERR_INPUT,
                            "decoder Replace: only replacing a string by a space is supported");
        TRY(text_of(&r->mark, r, from));
    } else if (strcmp(type, "Metaspace") == 0) {
        const char *mark = "\xE2\x96\x81", *scheme = "always";
        bool prefix = true;
        TRY(json_opt_str(&mark, json, "replacement", "decoder"));
        TRY(json_opt_str(&scheme, json, "prepend_scheme", "decoder"));
        TRY(json_opt_bool(&prefix, json, "add_prefix_space", "decoder"));
        TRY(text_of(&r->mark, r, mark));
        r->t->strip_space = prefix && strcmp(scheme, "never") != 0;
    } else if (strcmp(type, "Strip") == 0) {
        int64_t start = 0;
        TRY(json_opt_int(&start, json, "start", 0, 1000, "decoder"));
        r->t->strip_space = start > 0;
    } else if (strcmp(type, "Fuse") != 0) {
        return err_make(ERR_INPUT, "decoder %s is not supported", type);
    }
    return ERR_NONE;
}

/* The byte of a token such as "<0x0A>", or -1. */
static int byte_of_name(const char *text)
{
    char *end;
    if (strlen(text) != 6 || strncmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    long byte = strtol(text + 3, &end, 16);
    return end == text + 5 ? (int)byte : -1;
}

/* The text that a token decodes to, computed once per token so that decoding only copies bytes. A
 * token of a byte-level vocabulary with a character that is no letter of a byte (some added tokens)
 * decodes to itself. */
static err read_bytes(struct tokenizer_token *token, struct reading *r)
{
    struct bytes *b = &r->letters;
    size_t size = strlen(token->text), mark = r->mark ? strlen(r->mark) : 0;
    int byte = r->byte_fallback ? byte_of_name(token->text) : -1;
    bytes_clear(b);
    if (byte >= 0) {
        TRY(bytes_append(b, &(uint8_t){(uint8_t)byte}, 1));
    } else if (!r->byte_level || !tokenizer_unletter(b, token->text, size)) {
        for (size_t i = 0; i < size; i++) {
            bool space = mark && strncmp(token->text + i, r->mark, mark) == 0;
            TRY(bytes_append(b, space ? " " : token->text + i, 1));
            i += space ? mark - 1 : 0;
        }
    }
    TRY(arena_text(&token->bytes, &r->t->arena, b->data ? (const char *)b->data : "", b->size));
    token->size = (uint32_t)b->size;
    return ERR_NONE;
}

/* The text of a token as it appears in words. With a byte-level pre-tokenizer words are bytes, so
 * the letters are turned back into bytes. Returns false for an empty token and for letters that
 * stand for no byte, which no word can contain. */
static bool word_of(const char **text, size_t *size, struct reading *r, const char *token)
{
    *text = token;
    *size = strlen(token);
    if (!r->t->bpe.bytes) return *size > 0;
    bytes_clear(&r->letters);
    if (!tokenizer_unletter(&r->letters, token, *size) || r->letters.size == 0) return false;
    *text = (const char *)r->letters.data;
    *size = r->letters.size;
    return true;
}

/* Ids need not be in order and may have gaps. The largest id of the vocabulary and the added tokens
 * decides the size. */
static err make_room(struct reading *r, json_t *vocab, const json_t *added)
{
    const char *name;
    json_t *value;
    json_int_t last = -1;
    size_t i;
    if (!json_is_object(vocab)) return err_make(ERR_INPUT, "model.vocab: expected an object");
    json_object_foreach(vocab, name, value)
    {
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= (json_int_t)LIMIT_VOCAB)
            return err_make(ERR_INPUT, "model.vocab: the id of %.60s is not in [0, %u)", name,
                            LIMIT_VOCAB);
        if (id > last) last = id;
    }
    json_array_foreach(added, i, value)
    {
        json_int_t id = json_integer_value(json_object_get(value, "id"));
        if (id > last && id < (json_int_t)LIMIT_VOCAB) last = id;
    }
    return tokenizer_make_room(r->t, (size_t)(last + 1));
}

/* make_room() has checked every id. */
static err read_vocab(struct reading *r, json_t *vocab)
{
    const char *name, *word;
    json_t *value;
    size_t size;
    json_object_foreach(vocab, name, value)
    {
        json_int_t id = json_integer_value(value);
        struct tokenizer_token *token = &r->t->token[id];
        TRY(text_of(&token->text, r, name));
        TRY(read_bytes(token, r));
        if (word_of(&word, &size, r, name)) TRY(bpe_add_token(&r->t->bpe, word, size, (int32_t)id));
    }
    return ERR_NONE;
}

/* A merge is "a b" in old files and ["a", "b"] in new ones, which can contain spaces. Parts are
 * copied, because word_of() reuses its buffer. */
static err read_merge(struct reading *r, const json_t *json, uint32_t rank)
{
    const char *left = json_string_value(json_array_get(json, 0));
    const char *right = json_string_value(json_array_get(json, 1)), *space, *word;
    size_t size;
    char text[2][4096];
    if (json_is_string(json) && (space = strchr(json_string_value(json), ' ')) != NULL) {
        size = (size_t)(space - json_string_value(json));
        if (size >= sizeof text[0]) return err_make(ERR_INPUT, "model.merges[%u]: too long", rank);
        memcpy(text[0], json_string_value(json), size);
        text[0][size] = 0;
        left = text[0];
        right = strchr(space + 1, ' ') ? NULL : space + 1;
    }
    if (!left || !right || !*left || !*right)
        return err_make(ERR_INPUT, "model.merges[%u]: expected two tokens", rank);
    struct bpe_merge m = {.rank = rank, .replace = true};
    const char *part[2] = {left, right};
    size_t part_size[2];
    for (int i = 0; i < 2; i++) {
        if (!word_of(&word, &size, r, part[i])) return ERR_NONE; /* can never match */
        if (size >= sizeof text[i]) return err_make(ERR_INPUT, "model.merges[%u]: too long", rank);
        memmove(text[i], word, size);
        part[i] = text[i];
        part_size[i] = size;
    }
    m.left = part[0], m.left_size = part_size[0];
    m.right = part[1], m.right_size = part_size[1];
    return bpe_add_merge(&r->t->bpe, &m);
}

/* Affixes mark the parts of words (old GPT and BERT models) and would need another algorithm. */
static err refuse_affixes(const json_t *model)
{
    static const char *const keys[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *affix = json_string_value(json_object_get(model, keys[i]));
        if (affix && *affix) return err_make(ERR_INPUT, "model.%s is not supported", keys[i]);
    }
    return ERR_NONE;
}

/* The texts that unigram_read() has set are decoded like those of BPE. */
static err read_unigram(struct reading *r, const json_t *model)
{
    if (r->t->split.byte_level)
        return err_make(ERR_INPUT, "model Unigram after ByteLevel is not supported");
    TRY(unigram_read(r->t, model));
    for (size_t id = 0; id < r->t->vocab; id++)
        if (r->t->token[id].text) TRY(read_bytes(&r->t->token[id], r));
    return ERR_NONE;
}

/* Very old files have no `type`; a list of merges shows that they are BPE. A merge may only join to
 * a token of the vocabulary, as in the reference, which is checked by counting symbols: a new
 * symbol means an unknown token. */
static err read_model(struct reading *r, const json_t *model, const json_t *added)
{
    struct bpe *b = &r->t->bpe;
    const char *type = NULL, *unknown = NULL, *word;
    size_t size, i;
    json_t *merges = json_object_get(model, "merges"), *item;
    TRY(json_opt_str(&type, model, "type", "model"));
    if (type && strcmp(type, "Unigram") == 0) return read_unigram(r, model);
    if (type ? strcmp(type, "BPE") != 0 : !json_is_array(merges))
        return err_make(ERR_INPUT, "model %s is not supported (BPE and Unigram are)",
                        type ? type : "without type or merges");
    TRY(refuse_affixes(model));
    TRY(json_opt_bool(&b->byte_fallback, model, "byte_fallback", "model"));
    TRY(json_opt_bool(&b->fuse_unknown, model, "fuse_unk", "model"));
    TRY(json_opt_bool(&b->whole, model, "ignore_merges", "model"));
    TRY(json_opt_str(&unknown, model, "unk_token", "model"));
    b->early = true;
    TRY(make_room(r, json_object_get(model, "vocab"), added));
    TRY(read_vocab(r, json_object_get(model, "vocab")));
    if (!json_is_array(merges)) return err_make(ERR_INPUT, "model.merges: expected a list");
    size_t tokens = b->count;
    json_array_foreach(merges, i, item)
    {
        TRY(read_merge(r, item, (uint32_t)i));
        if (b->count != tokens)
            return err_make(ERR_INPUT, "model.merges[%zu]: a token that is not in the vocabulary",
                            i);
    }
    if (unknown && word_of(&word, &size, r, unknown)) b->unknown = bpe_find(b, word, size);
    bpe_seal(b);
    return ERR_NONE;
}

/* Decoders work on added tokens too: Gemma has runs of marks among them, which stand for spaces.
 * A token with `normalized` (the default for tokens that are not special) is compared with
 * normalised text, so its own text is normalised here as well. */
static err read_added_token(struct reading *r, const json_t *json)
{
    int64_t id;
    const char *content;
    bool normalized = true;
    struct added_token a = {0};
    TRY(json_get_int(&id, json, "id", 0, LIMIT_VOCAB - 1, "added_tokens"));
    TRY(json_get_str(&content, json, "content", "added_tokens"));
    TRY(json_opt_bool(&a.special, json, "special", "added_tokens"));
    TRY(json_opt_bool(&a.single_word, json, "single_word", "added_tokens"));
    TRY(json_opt_bool(&a.lstrip, json, "lstrip", "added_tokens"));
    TRY(json_opt_bool(&a.rstrip, json, "rstrip", "added_tokens"));
    normalized = !a.special;
    TRY(json_opt_bool(&normalized, json, "normalized", "added_tokens"));
    if (!*content) return ERR_NONE;
    TRY(tokenizer_make_room(r->t, (size_t)id + 1));
    struct tokenizer_token *token = &r->t->token[id];
    TRY(text_of(&token->text, r, content));
    TRY(read_bytes(token, r));
    token->special = a.special;
    a.id = (int32_t)id;
    a.text = token->text;
    a.size = (uint32_t)strlen(content);
    if (!normalized) return added_put(&r->t->raw, &a);
    struct normalize_buffers buffers = {0};
    struct piece in = {.text = a.text, .size = a.size}, out;
    err e = normalize_run(&out, &r->t->normalize, &in, &buffers);
    if (!err_is(e) && out.size > 0) {
        a.size = out.size;
        e = arena_text(&a.text, &r->t->arena, out.text, out.size);
        if (!err_is(e)) e = added_put(&r->t->normal, &a);
    }
    normalize_buffers_close(&buffers);
    return e;
}

/* The order matters: added tokens need the normaliser, and the vocabulary needs to know whether
 * words are bytes. */
static err read_tokenizer(struct reading *r, const json_t *root)
{
    struct tokenizer *t = r->t;
    const json_t *added = json_object_get(root, "added_tokens"), *item;
    size_t i;
    TRY(normalize_read(&t->normalize, &t->arena, json_object_get(root, "normalizer")));
    TRY(split_read(&t->split, &t->arena, json_object_get(root, "pre_tokenizer")));
    TRY(read_decoder(r, json_object_get(root, "decoder"), 0));
    t->bpe.bytes = t->split.byte_level;
    TRY(read_model(r, json_object_get(root, "model"), added));
    json_array_foreach(added, i, item) TRY(read_added_token(r, item));
    added_seal(&t->raw);
    added_seal(&t->normal);
    (void)snprintf(t->kind, sizeof t->kind, "%s",
                   t->unigram.count > 0   ? t->unigram.byte_fallback
                                                ? "Unigram with byte fallback (tokenizer.json)"
                                                : "Unigram (tokenizer.json)"
                   : t->bpe.bytes         ? "byte-level BPE (tokenizer.json)"
                   : t->bpe.byte_fallback ? "BPE with byte fallback (tokenizer.json)"
                                          : "BPE (tokenizer.json)");
    return ERR_NONE;
}

/* The name of a special token: a string, or an object with `content`. */
static const char *token_name(const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

/* Keeps a token that an earlier file has named. */
static void use_names(struct tokenizer *t, const json_t *config)
{
    const char *bos = token_name(config, "bos_token"), *eos = token_name(config, "eos_token");
    if (bos && t->bos < 0) t->bos = tokenizer_find(t, bos);
    if (eos && t->eos < 0) t->eos = tokenizer_find(t, eos);
}

/* The first id becomes eos; every id ends an answer. */
static void use_end(struct tokenizer *t, const json_t *id)
{
    json_int_t n = json_integer_value(id);
    if (!json_is_integer(id) || n < 0 || (size_t)n >= t->vocab) return;
    if (t->eos < 0) t->eos = (int32_t)n;
    t->token[n].ends = true;
}

/* eos_token_id is one id or a list. */
static void use_ids(struct tokenizer *t, const json_t *config)
{
    const json_t *bos = json_object_get(config, "bos_token_id"), *item;
    const json_t *eos = json_object_get(config, "eos_token_id");
    size_t i;
    json_int_t n = json_integer_value(bos);
    if (json_is_integer(bos) && t->bos < 0 && n >= 0 && (size_t)n < t->vocab) t->bos = (int32_t)n;
    if (json_is_integer(eos)) use_end(t, eos);
    json_array_foreach(eos, i, item) use_end(t, item);
}

/* Reads the files other than tokenizer.json in the order of their rank: a value from an earlier
 * file is kept. Names come before ids, because ids of config.json are often those of the base model
 * and not of the chat model. */
static err read_beside(struct reading *r)
{
    static const char *const files[] = {"tokenizer_config.json", "special_tokens_map.json",
                                        "generation_config.json", "config.json"};
    for (int i = 0; i < 4; i++) {
        json_t *config = NULL;
        TRY(open_json(&config, r->dir, files[i], false));
        if (!config) continue;
        if (i < 2)
            use_names(r->t, config);
        else
            use_ids(r->t, config);
        json_decref(config);
    }
    return vocab_template_read_hf(r->t, r->dir);
}

/* Files of slow tokenizers leave out steps that only code of transformers knows. */
static err refuse_old_form(const char *dir)
{
    static const char *const names[] = {"tokenizer.model", "spiece.model", "vocab.json",
                                        "vocab.txt"};
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, "tokenizer.json"));
    if (file_exists(path)) return ERR_NONE;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        TRY(file_join(path, sizeof path, dir, names[i]));
        if (file_exists(path))
            return err_make(ERR_INPUT,
                            "%s: expected tokenizer.json beside it; write it with transformers: "
                            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
                            path);
    }
    return ERR_NONE;
}

/* Errors in tokenizer.json name the file; the readers themselves name only keys. */
err vocab_hf_read(struct tokenizer *t, const char *dir)
{
    struct reading r = {.t = t, .dir = dir, .letters = {.max = 1 << 20}};
    json_t *root = NULL;
    TRY(refuse_old_form(dir));
    TRY(open_json(&root, dir, "tokenizer.json", true));
    err e = read_tokenizer(&r, root);
    json_decref(root);
    bytes_close(&r.letters);
    if (err_is(e)) return err_in(e, "%s/tokenizer.json", dir);
    return read_beside(&r);
}
