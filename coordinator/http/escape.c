#include "coordinator/http/escape.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

/* Appends `text` with the characters of `from` replaced by the texts of `to`. Control characters
 * and wrong UTF-8 are made harmless first, piece by piece, so that no length is too long. */
static err replace(struct bytes *out, const char *text, const char *from, const char *const *to)
{
    char piece[512];
    bool utf8 = text_is_utf8(text, strlen(text));
    while (*text) {
        size_t size = strnlen(text, sizeof piece - 1);
        /* A character of several bytes stays in one piece. */
        while (utf8 && size > 4 && ((uint8_t)text[size] & 0xc0) == 0x80)
            size--;
        memcpy(piece, text, size);
        piece[size] = 0;
        text += size;
        text_tame(piece);
        for (const char *at = piece; *at;) {
            size_t plain = strcspn(at, from);
            TRY(bytes_append(out, at, plain));
            at += plain;
            if (!*at) break;
            const char *with = to[strchr(from, *at) - from];
            TRY(bytes_append(out, with, strlen(with)));
            at++;
        }
    }
    return ERR_NONE;
}

err escape_html(struct bytes *out, const char *text)
{
    static const char *const to[] = {"&lt;", "&gt;", "&amp;", "&quot;", "&#39;"};
    return replace(out, text, "<>&\"'", to);
}

err escape_label(struct bytes *out, const char *text)
{
    static const char *const to[] = {"\\\"", "\\\\"};
    return replace(out, text, "\"\\", to);
}
