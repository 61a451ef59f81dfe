/* Reads pre-tokenizers from tokenizer.json or by their names in GGUF files. The reference programs
 * use other regular expression engines with other Unicode tables than PCRE2, so patterns are
 * rewritten before they are compiled: every \s, \p{L} and \p{N} becomes an explicit class of code
 * points. Otherwise words, and with them ids, would differ from the reference. */
#include "engine/tokens/split.h"

#include "base/bytes.h"
#include "base/json.h"

#include <string.h>

enum { PATTERN_BYTES_MAX = 1 << 16, PATTERNS_MAX = 5 };

/* The pattern of GPT-2, which ByteLevel uses with use_regex. Text between matches forms a word of
 * its own, so the last alternative (\s+) changes nothing; it is kept to stay equal to the published
 * pattern. */
#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define CONTRACTIONS "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define LETTERS_UP "[^\\r\\n\\p{L}\\p{N}]?((?=[\\p{L}])([^a-z]))"
#define LETTERS_LOW "((?=[\\p{L}])([^A-Z]))"
#define TAIL "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* White space of the reference tokenizers: the Unicode property White_Space. \s of PCRE2 also
 * contains U+180E. */
#define SPACES                                                                                     \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"    \
    "\\x{205f}\\x{3000}"

/* PCRE2 10.42 knows Unicode 14. These are the letters and numbers that Unicode 15 and 15.1 (tables
 * of llama.cpp) and 16 (Hugging Face) added. */
#define LETTERS_15                                                                                 \
    "\\x{1123f}-\\x{11240}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"          \
    "\\x{13441}-\\x{13446}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}"          \
    "\\x{1e4d0}-\\x{1e4eb}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define LETTERS_16                                                                                 \
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"               \
    "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{11380}-\\x{11389}\\x{"     \
    "1138b}"                                                                                       \
    "\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}"           \
    "\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}\\x{18cff}"                    \
    "\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}"
#define NUMBERS_15 "\\x{11f50}-\\x{11f59}\\x{1d2c0}-\\x{1d2d3}\\x{1e4f0}-\\x{1e4f9}"
#define NUMBERS_16                                                                                 \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{16130}-\\x{16139}"         \
    "\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1e5f1}-\\x{1e5fa}"

/* An escape of a pattern and the code points that the reference means by it, without brackets. */
struct meaning {
    const char *escape, *v15, *v16; /* without brackets */
};
static const struct meaning meanings[] = {
    {"\\s", SPACES, SPACES},
    {"\\p{L}", "\\p{L}" LETTERS_15, "\\p{L}" LETTERS_15 LETTERS_16},
    {"\\p{N}", "\\p{N}" NUMBERS_15, "\\p{N}" NUMBERS_15 NUMBERS_16},
};

static const struct meaning *find_meaning(const char *p)
{
    for (size_t i = 0; i < sizeof meanings / sizeof *meanings; i++)
        if (strncmp(p, meanings[i].escape, strlen(meanings[i].escape)) == 0) return &meanings[i];
    return NULL;
}

/* Replaces these escapes by explicit classes, and \S outside of a class by the negated class of
 * white space. Inside a class the ranges are inserted without brackets. */
static err translate(struct bytes *out, const char *pattern, bool unicode_16)
{
    bool in_class = false;
    for (const char *p = pattern; *p; p++) {
        const struct meaning *m = find_meaning(p);
        if (m) {
            const char *text = unicode_16 ? m->v16 : m->v15;
            TRY(bytes_printf(out, in_class ? "%s" : "[%s]", text));
            p += strlen(m->escape) - 1;
        } else if (*p == '\\' && p[1]) {
            bool not_space = p[1] == 'S' && !in_class;
            TRY(not_space ? bytes_printf(out, "[^%s]", SPACES) : bytes_append(out, p, 2));
            p++;
        } else {
            if (*p == '[') in_class = true;
            if (*p == ']') in_class = false;
            TRY(bytes_append(out, p, 1));
        }
    }
    return ERR_NONE;
}

/* \C is forbidden, because it would match a part of a character. Without JIT matching is slower,
 * but correct. */
static err compile(pcre2_code **out, const char *pattern, bool unicode_16)
{
    struct bytes text = {.max = PATTERN_BYTES_MAX};
    int code;
    PCRE2_SIZE at;
    err e;
    TRY_OUT(e, bytes_append(&text, "", 0));
    TRY_OUT(e, translate(&text, pattern, unicode_16));
    pcre2_code *regex =
        pcre2_compile(text.data ? text.data : (PCRE2_SPTR) "", text.size,
                      PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (!regex) {
        PCRE2_UCHAR why[120];
        pcre2_get_error_message(code, why, sizeof why);
        e = err_make(ERR_INPUT, "pre-tokenizer pattern %.100s: %s", pattern, (const char *)why);
        goto out;
    }
    (void)pcre2_jit_compile(regex, PCRE2_JIT_COMPLETE);
    *out = regex;
out:
    bytes_close(&text);
    return e;
}

static err put(struct split *s, const struct split_step *step)
{
    if (s->count == SPLIT_STEPS_MAX)
        return err_make(ERR_INPUT, "pre_tokenizer: more than %d steps", SPLIT_STEPS_MAX);
    s->step[s->count++] = *step;
    return ERR_NONE;
}

/* The limit is checked before compiling, so that split_close() finds every compiled pattern. */
static err put_regex(struct split *s, const char *pattern, enum split_behavior behavior,
                     bool invert)
{
    if (s->count == SPLIT_STEPS_MAX)
        return err_make(ERR_INPUT, "pre_tokenizer: more than %d steps", SPLIT_STEPS_MAX);
    struct split_step step = {.behavior = behavior, .invert = invert};
    TRY(compile(&step.regex, pattern, !s->unicode_15));
    return put(s, &step);
}

/* A pattern that matches exactly this text: ASCII is written as hexadecimal escapes, so no
 * character has a special meaning. */
static err put_literal(struct split *s, const char *text, enum split_behavior behavior, bool invert)
{
    struct bytes pattern = {.max = PATTERN_BYTES_MAX};
    err e = ERR_NONE;
    for (const char *p = text; *p && !err_is(e); p++)
        e = (*p & 0x80) ? bytes_append(&pattern, p, 1)
                        : bytes_printf(&pattern, "\\x{%x}", (unsigned)*p);
    if (!err_is(e) && pattern.size == 0) e = err_make(ERR_INPUT, "pre_tokenizer: an empty pattern");
    if (!err_is(e)) e = put_regex(s, (const char *)pattern.data, behavior, invert);
    bytes_close(&pattern);
    return e;
}

/* The names are in the order of enum split_behavior. */
static err read_behavior(enum split_behavior *out, const json_t *json)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name = NULL;
    TRY(json_opt_str(&name, json, "behavior", "pre_tokenizer"));
    for (int i = 0; name && i < 5; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (enum split_behavior)i;
        return ERR_NONE;
    }
    if (!name) return ERR_NONE;
    return err_make(ERR_INPUT, "pre_tokenizer.behavior %s is not known", name);
}

static err read_split(struct split *s, const json_t *json)
{
    const json_t *pattern = json_object_get(json, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    const char *literal = json_string_value(json_object_get(pattern, "String"));
    enum split_behavior behavior = SPLIT_ISOLATED;
    bool invert = false;
    TRY(read_behavior(&behavior, json));
    TRY(json_opt_bool(&invert, json, "invert", "pre_tokenizer"));
    if (regex) return put_regex(s, regex, behavior, invert);
    if (literal) return put_literal(s, literal, behavior, invert);
    return err_make(ERR_INPUT, "pre_tokenizer.pattern: expected a Regex or a String");
}

/* Defaults of the reference: a space is put first and the pattern of GPT-2 is used. */
static err read_byte_level(struct split *s, const json_t *json)
{
    bool prefix = true, regex = true;
    TRY(json_opt_bool(&prefix, json, "add_prefix_space", "pre_tokenizer"));
    TRY(json_opt_bool(&regex, json, "use_regex", "pre_tokenizer"));
    if (prefix) TRY(put(s, &(struct split_step){.kind = SPLIT_SPACE, .prefix = true}));
    if (regex) TRY(put_regex(s, GPT2_PATTERN, SPLIT_ISOLATED, false));
    s->byte_level = true;
    return ERR_NONE;
}

/* Old files have add_prefix_space, newer ones prepend_scheme, which counts if both are there. With
 * `split`, words are cut before each mark. */
static err read_metaspace(struct split *s, struct arena *arena, const json_t *json)
{
    const char *mark = "\xE2\x96\x81", *scheme = NULL;
    bool prefix = true, split = true;
    TRY(json_opt_str(&mark, json, "replacement", "pre_tokenizer"));
    TRY(json_opt_bool(&prefix, json, "add_prefix_space", "pre_tokenizer"));
    TRY(json_opt_str(&scheme, json, "prepend_scheme", "pre_tokenizer"));
    TRY(json_opt_bool(&split, json, "split", "pre_tokenizer"));
    struct split_step step = {.kind = SPLIT_METASPACE, .prefix = prefix};
    if (scheme && strcmp(scheme, "always") == 0)
        step.prefix = true;
    else if (scheme && strcmp(scheme, "never") == 0)
        step.prefix = false;
    else if (scheme && strcmp(scheme, "first") == 0)
        step.prefix = step.prefix_first_only = true;
    else if (scheme)
        return err_make(ERR_INPUT, "pre_tokenizer.prepend_scheme %s is not known", scheme);
    TRY(arena_text(&step.mark, arena, mark, strlen(mark)));
    step.mark_size = (uint32_t)strlen(mark);
    TRY(put(s, &step));
    return split ? put_literal(s, mark, SPLIT_WITH_NEXT, false) : ERR_NONE;
}

/* Pre-tokenizers that are one pattern each. Whitespace keeps the words of its pattern, so the
 * pattern is inverted and the rest removed. */
static err read_plain(struct split *s, const char *type, const json_t *json)
{
    if (strcmp(type, "Digits") == 0) {
        bool each = false;
        TRY(json_opt_bool(&each, json, "individual_digits", "pre_tokenizer"));
        return put_regex(s, each ? "\\p{N}" : "\\p{N}+", SPLIT_ISOLATED, false);
    }
    if (strcmp(type, "Punctuation") == 0) {
        enum split_behavior behavior = SPLIT_ISOLATED;
        TRY(read_behavior(&behavior, json));
        return put_regex(s, "[!-/:-@\\[-`{-~\\p{P}]", behavior, false);
    }
    if (strcmp(type, "Whitespace") == 0)
        return put_regex(s, "\\w+|[^\\w\\s]+", SPLIT_REMOVED, true);
    if (strcmp(type, "WhitespaceSplit") == 0) return put_regex(s, "\\s", SPLIT_REMOVED, false);
    if (strcmp(type, "CharDelimiterSplit") == 0) {
        const char *delimiter;
        TRY(json_get_str(&delimiter, json, "delimiter", "pre_tokenizer"));
        return put_literal(s, delimiter, SPLIT_REMOVED, false);
    }
    return err_make(ERR_INPUT, "pre_tokenizer %s is not supported", type);
}

/* ByteLevel turns text into letters of bytes in the reference, so a step after it would see
 * letters; here words stay bytes and such a step is refused. */
static err read_step(struct split *s, struct arena *arena, const json_t *json, int depth)
{
    const char *type;
    TRY(json_get_str(&type, json, "type", "pre_tokenizer"));
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(json, "pretokenizers"), *item;
        size_t i;
        if (!json_is_array(list) || depth > 4)
            return err_make(ERR_INPUT,
                            "pre_tokenizer.pretokenizers: expected a list, at most 4 deep");
        json_array_foreach(list, i, item) TRY(read_step(s, arena, item, depth + 1));
        return ERR_NONE;
    }
    if (s->byte_level)
        return err_make(ERR_INPUT, "pre_tokenizer %s after ByteLevel is not supported", type);
    if (strcmp(type, "Split") == 0) return read_split(s, json);
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(s, json);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(s, arena, json);
    return read_plain(s, type, json);
}

err split_read(struct split *out, struct arena *arena, const json_t *json)
{
    if (!json || json_is_null(json)) return ERR_NONE;
    return read_step(out, arena, json, 0);
}

/* Patterns of the pre-tokenizers in llama.cpp (llama-vocab.cpp), in the order in which they are
 * applied. Each name is between spaces, so that a search for " name " finds only whole
 * names. */
static const struct pre_tokenizer {
    const char *names; /* with a space before and after each */
    const char *pattern[PATTERNS_MAX];
} pre_tokenizers[] = {
    {" llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx "
     "smaug-bpe"
     " glm4 chatglm-bpe ",
     {CONTRACTIONS
      "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL}},
    {" qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 ",
     {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" TAIL}},
    {" qwen35 ",
     {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"
                   "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" TAIL}},
    {" gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert mpt "
     "olmo"
     " jais trillion granite-docling exaone4 jina-v1-en jina-v2-code roberta-bpe ",
     {GPT2_PATTERN}},
    {" starcoder refact command-r smollm codeshell exaone minerva-7b mellum2 ",
     {"\\p{N}", GPT2_PATTERN}},
    {" falcon ", {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2_PATTERN, "[0-9][0-9][0-9]"}},
    {" default ", {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2_PATTERN, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {" tekken ",
     {LETTERS_UP "*" LETTERS_LOW "+|" LETTERS_UP "+" LETTERS_LOW
                 "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL}},
    {" gpt-4o llama4 kanana2 talkie minimax-m2 ",
     {LETTERS_UP "*" LETTERS_LOW "+" CONTRACTIONS "?|" LETTERS_UP "+" LETTERS_LOW "*" CONTRACTIONS
                 "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" TAIL}},
    {" seed-coder ",
     {CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" TAIL}},
    {" deepseek-coder ",
     {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+",
      "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+", "\\p{N}"}},
};

/* A name with a space could match across two entries of a list. */
err split_named(struct split *out, const char *gguf_name)
{
    char padded[80];
    if (strlen(gguf_name) > 70 || strchr(gguf_name, ' '))
        return err_make(ERR_INPUT, "pre-tokenizer %.80s is not known", gguf_name);
    (void)snprintf(padded, sizeof padded, " %s ", gguf_name);
    for (size_t i = 0; i < sizeof pre_tokenizers / sizeof *pre_tokenizers; i++) {
        if (!strstr(pre_tokenizers[i].names, padded)) continue;
        out->byte_level = out->unicode_15 = true;
        for (int k = 0; k < PATTERNS_MAX && pre_tokenizers[i].pattern[k]; k++)
            TRY(put_regex(out, pre_tokenizers[i].pattern[k], SPLIT_ISOLATED, false));
        return ERR_NONE;
    }
    return err_make(ERR_INPUT, "pre-tokenizer %s is not known", gguf_name);
}
