#include "proto/enroll_token.h"

#include "base/text.h"

#include <ctype.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define HEX "0123456789abcdef"
#define FORM ENROLL_TOKEN_PREFIX ":HOST:PORT:ID:SECRET:CAHASH"

/* Exactly `bytes` bytes in lower-case hexadecimal digits. Upper case is refused, so that a token
 * has one spelling. */
static bool parse_hex(uint8_t *out, size_t bytes, const char *text)
{
    size_t size = 0;
    if (strlen(text) != 2 * bytes || strspn(text, HEX) != 2 * bytes) return false;
    return sodium_hex2bin(out, bytes, text, 2 * bytes, NULL, &size, NULL) == 0 && size == bytes;
}

/* The characters of host names and addresses only, because the text ends in files, logs and on
 * terminals. The brackets of an IPv6 address are kept. */
err enroll_token_check_server(const char *server)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-";
    const char *end = NULL;
    int64_t port = 0;
    if (server[0] == '[') {
        end = server + 1 + strspn(server + 1, HEX "ABCDEF:.");
        end = end > server + 1 && *end == ']' ? end + 1 : NULL;
    } else if (server[strspn(server, letters)] == ':' && server[0] != ':') {
        end = server + strspn(server, letters);
    }
    if (end == NULL || *end != ':' || strlen(end + 1) > 5 ||
        err_is(text_parse_int(&port, end + 1, 1, 65535)))
        return err_make(ERR_INPUT,
                        "\"%.80s\" is no address: expected HOST:PORT (an IPv6 address in brackets)",
                        server);
    return ERR_NONE;
}

/* Cuts the last part after a colon off; NULL: there is no colon. */
static char *take_last(char *text)
{
    char *colon = strrchr(text, ':');
    if (colon == NULL) return NULL;
    *colon = 0;
    return colon + 1;
}

/* The text without space around it. */
static err copy_text(char out[ENROLL_TOKEN_BYTES], const char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    size_t size = strlen(text);
    while (size > 0 && isspace((unsigned char)text[size - 1]))
        size--;
    if (size >= ENROLL_TOKEN_BYTES)
        return err_make(ERR_INPUT, "the token has %zu bytes: expected " FORM, size);
    memcpy(out, text, size);
    out[size] = 0;
    return ERR_NONE;
}

/* The parts are taken from the end, because HOST may contain colons. */
static err parse_parts(struct enroll_token *token, char *text)
{
    size_t prefix = strlen(ENROLL_TOKEN_PREFIX ":");
    if (strncmp(text, ENROLL_TOKEN_PREFIX ":", prefix) != 0)
        return err_make(ERR_INPUT, "this is no token: expected " FORM);
    char *server = text + prefix;
    char *hash = take_last(server);
    char *secret = hash ? take_last(server) : NULL;
    char *id = secret ? take_last(server) : NULL;
    if (id == NULL)
        return err_make(ERR_INPUT,
                        "the token is not complete: expected " FORM "; copy the whole line");
    if (!parse_hex(token->ca.byte, ENROLL_HASH_BYTES, hash))
        return err_make(ERR_INPUT,
                        "the token's last part, the hash of the authority, has %zu characters: "
                        "expected %d lower-case hexadecimal digits; copy the whole line",
                        strlen(hash), 2 * ENROLL_HASH_BYTES);
    if (!parse_hex(token->secret, ENROLL_SECRET_BYTES, secret))
        return err_make(ERR_INPUT,
                        "the token's secret is damaged: expected %d lower-case hexadecimal digits",
                        2 * ENROLL_SECRET_BYTES);
    if (!text_is_name(id, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT,
                        "the token's ID is damaged: expected a name of letters, digits, '.', '_' "
                        "and '-'");
    if (strlen(server) >= sizeof token->server)
        return err_make(ERR_INPUT, "the token's HOST:PORT is too long: expected at most %zu bytes",
                        sizeof token->server - 1);
    err e = enroll_token_check_server(server);
    if (err_is(e)) return err_in(e, "the token");
    snprintf(token->server, sizeof token->server, "%.*s", (int)sizeof token->server - 1, server);
    snprintf(token->id, sizeof token->id, "%s", id);
    return ERR_NONE;
}

err enroll_token_parse(struct enroll_token *out, const char *text)
{
    char copy[ENROLL_TOKEN_BYTES];
    struct enroll_token token = {0};
    err e;
    TRY_OUT(e, copy_text(copy, text));
    TRY_OUT(e, parse_parts(&token, copy));
    *out = token;
out:
    sodium_memzero(copy, sizeof copy);
    sodium_memzero(&token, sizeof token);
    return e;
}

err enroll_token_print(char out[ENROLL_TOKEN_BYTES], const struct enroll_token *token)
{
    char secret[2 * ENROLL_SECRET_BYTES + 1], hash[ENROLL_HASH_TEXT_BYTES];
    TRY(enroll_token_check_server(token->server));
    if (!text_is_name(token->id, LIMIT_NAME_BYTES - 1))
        return err_make(ERR_INPUT, "a token for \"%.80s\": expected a name", token->id);
    sodium_bin2hex(secret, sizeof secret, token->secret, sizeof token->secret);
    enroll_token_hash_text(hash, &token->ca);
    snprintf(out, ENROLL_TOKEN_BYTES, ENROLL_TOKEN_PREFIX ":%s:%s:%s:%s", token->server, token->id,
             secret, hash);
    sodium_memzero(secret, sizeof secret);
    return ERR_NONE;
}

/* ---------------------------------------------------------------- the hash of the authority */

err enroll_token_hash_parse(struct enroll_hash *out, const char *text)
{
    struct enroll_hash hash;
    if (!parse_hex(hash.byte, sizeof hash.byte, text))
        return err_make(ERR_INPUT,
                        "\"%.80s\" is not the hash of an authority: expected %d lower-case "
                        "hexadecimal digits",
                        text, 2 * ENROLL_HASH_BYTES);
    *out = hash;
    return ERR_NONE;
}

void enroll_token_hash_text(char out[ENROLL_HASH_TEXT_BYTES], const struct enroll_hash *hash)
{
    sodium_bin2hex(out, ENROLL_HASH_TEXT_BYTES, hash->byte, sizeof hash->byte);
}

struct enroll_hash enroll_token_hash_of(const void *der, size_t size)
{
    struct enroll_hash hash;
    (void)crypto_hash_sha256(hash.byte, der, size); /* it cannot fail */
    return hash;
}
