/* The small tokenizer of SmolLM2 in a directory of its own, with a chat template. */
#ifndef TESTS_CHAT_FIXTURE_H
#define TESTS_CHAT_FIXTURE_H

#include "base/file.h"
#include "engine/tokens/tokenizer.h"
#include "tests/support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline struct tokenizer *chat_fixture_open(const char *dir, const char *jinja)
{
    static const char *const files[] = {"tokenizer.json", "tokenizer_config.json"};
    char from[SUPPORT_PATH_BYTES], to[SUPPORT_PATH_BYTES + 32];
    struct tokenizer *t;
    for (int i = 0; i < 2; i++) {
        char part[128], *text;
        size_t size;
        (void)snprintf(part, sizeof part, "tests/golden/tokenizer/smollm2/%s", files[i]);
        support_source(from, sizeof from, part);
        (void)snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        ok(file_read_all(&text, &size, from, 1 << 20));
        ok(file_write(to, text, size, true));
        free(text);
    }
    (void)snprintf(to, sizeof to, "%s/chat_template.jinja", dir);
    ok(file_write(to, jinja, strlen(jinja), true));
    ok(tokenizer_open(&t, dir));
    return t;
}

#endif
