/* Tokens and notes from outside: a token is refused, or it prints as the text that was read,
 * without the space around it. Notes never come from behind the first PEM block. */
#include "proto/enroll_token.h"
#include "client/identity/identity.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/token.txt", "tests/fuzz/seeds/token6.txt",
                                  "tests/fuzz/seeds/notes.pem", NULL};
const int fuzz_runs = 20000;

static void read_token(const char *text)
{
    struct enroll_token token;
    char again[ENROLL_TOKEN_BYTES];
    if (err_is(enroll_token_parse(&token, text))) return;
    if (err_is(enroll_token_print(again, &token))) abort();
    const char *at = strstr(text, again);
    if (at == NULL) abort();
    if (strspn(text, " \t\r\n\v\f") != (size_t)(at - text)) abort();
    if (at[strlen(again)] && !strchr(" \t\r\n\v\f", at[strlen(again)])) abort();
}

static void read_notes(const char *text)
{
    char note[IDENTITY_NOTE_BYTES];
    const char *end = strstr(text, "-----BEGIN");
    if (!identity_note(note, text, IDENTITY_NOTE_TOKEN)) return;
    if (strchr(note, '\n') || !*note) abort();
    const char *at = strstr(text, IDENTITY_NOTE_TOKEN ": ");
    if (at == NULL || (end != NULL && at > end)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    if (text == NULL) abort();
    if (size > 0) memcpy(text, data, size);
    text[size] = 0;
    read_token(text);
    read_notes(text);
    free(text);
    return 0;
}
