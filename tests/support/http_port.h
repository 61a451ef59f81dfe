/* The port of a coordinator's pages, from its log. */
#ifndef TESTS_SUPPORT_HTTP_PORT_H
#define TESTS_SUPPORT_HTTP_PORT_H

#include "base/file.h"
#include "tests/support/fake_federation.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

/* For a configuration with `listen = 127.0.0.1:0` in [http]. */
static inline int http_port_of(const struct fake_federation *f)
{
    char *text = NULL;
    size_t size;
    err e = file_read_all(&text, &size, f->log, 64 << 20);
    cr_assert(!err_is(e), "%s", e.text);
    const char *line = strstr(text, "event=http.listening");
    const char *port = line ? strstr(line, " port=") : NULL;
    cr_assert_not_null(port, "no line http.listening");
    int number = (int)strtol(port + 6, NULL, 10);
    free(text);
    return number;
}

#endif
