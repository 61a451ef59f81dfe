#include "proto/rpc_proxy.h"

#include "base/text.h"
#include "proto/rpc_internal.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

enum { ANSWER_BYTES = 8192, USERINFO_BYTES = 512, ENTRY_BYTES = 300 };

/* ---------------------------------------------------------------- no_proxy */

/* IPv4 addresses are mapped into IPv6 (::ffff:a.b.c.d), so that one comparison serves both. */
static bool parse_address(uint8_t out[16], bool *is_4, const char *text)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    memcpy(out, mapped, sizeof mapped);
    *is_4 = inet_pton(AF_INET, text, out + 12) == 1;
    return *is_4 || inet_pton(AF_INET6, text, out) == 1;
}

static bool same_bits(const uint8_t *a, const uint8_t *b, int64_t bits)
{
    int64_t whole = bits / 8, rest = bits % 8;
    if (memcmp(a, b, (size_t)whole) != 0) return false;
    return !rest || (uint8_t)(a[whole] ^ b[whole]) >> (8 - rest) == 0;
}

static bool in_network(const char *network, const char *bits_text, const char *host)
{
    uint8_t net[16], is[16];
    bool net_4, is_4;
    int64_t bits;
    if (!parse_address(is, &is_4, host) || !parse_address(net, &net_4, network)) return false;
    if (err_is(text_parse_int(&bits, bits_text, 0, net_4 ? 32 : 128))) return false;
    return same_bits(net, is, net_4 ? bits + 96 : bits);
}

static bool same_host(const char *entry, const char *host)
{
    uint8_t a[16], b[16];
    bool ignored;
    if (parse_address(a, &ignored, entry))
        return parse_address(b, &ignored, host) && memcmp(a, b, sizeof a) == 0;
    if (*entry == '*') entry++;
    if (*entry == '.') entry++;
    size_t n = strlen(entry), m = strlen(host);
    if (m && host[m - 1] == '.') m--;
    if (n && entry[n - 1] == '.') n--;
    if (!n || n > m || strncasecmp(host + m - n, entry, n) != 0) return false;
    return n == m || host[m - n - 1] == '.';
}

/* Cuts the port off, unless the only colons are those of an IPv6 address. False: it is another
 * port. */
static bool same_port(char *entry, const char *port)
{
    char *colon = strrchr(entry, ':'), *bracket = strrchr(entry, ']');
    bool has = colon && (bracket ? colon > bracket : strchr(entry, ':') == colon);
    if (has) *colon = 0;
    return !has || strcmp(colon + 1, port) == 0;
}

static bool excludes(char *entry, const char *host, const char *port)
{
    char *slash = strchr(entry, '/');
    if (strcmp(entry, "*") == 0) return true;
    if (slash) {
        *slash = 0;
        return in_network(entry, slash + 1, host);
    }
    if (!same_port(entry, port)) return false;
    size_t n = strlen(entry);
    if (n > 2 && *entry == '[' && entry[n - 1] == ']') {
        entry[n - 1] = 0;
        entry++;
    }
    return same_host(entry, host);
}

static bool is_listed(const char *list, const char *host, const char *port)
{
    static const char between[] = ", \t";
    for (const char *at = list + strspn(list, between); *at; at += strspn(at, between)) {
        size_t n = strcspn(at, between);
        char entry[ENTRY_BYTES];
        snprintf(entry, sizeof entry, "%.*s", (int)(n < sizeof entry ? n : 0), at);
        if (excludes(entry, host, port)) return true;
        at += n;
    }
    return false;
}

/* ---------------------------------------------------------------- the proxy */

static int hex(char c)
{
    return isdigit((unsigned char)c)    ? c - '0'
           : isxdigit((unsigned char)c) ? tolower((unsigned char)c) - 'a' + 10
                                        : -1;
}

/* USER:PASSWORD with its % escapes decoded, in base64. False: it is too long. */
static bool encode_userinfo(char *out, size_t bytes, const char *text, size_t size)
{
    unsigned char plain[USERINFO_BYTES];
    size_t n = 0;
    for (size_t i = 0; i < size; i++) {
        if (n == sizeof plain) return false;
        bool escape =
            text[i] == '%' && i + 2 < size && hex(text[i + 1]) >= 0 && hex(text[i + 2]) >= 0;
        plain[n++] = (unsigned char)(escape ? hex(text[i + 1]) << 4 | hex(text[i + 2]) : text[i]);
        if (escape) i += 2;
    }
    if ((n + 2) / 3 * 4 >= bytes) return false;
    EVP_EncodeBlock((unsigned char *)out, plain, (int)n);
    return true;
}

/* HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT. */
static bool split_authority(struct rpc_proxy *p, const char *text, size_t size)
{
    int64_t port = 80;
    const char *end = text + size, *first = text, *stop = end, *colon = NULL;
    if (size && *text == '[') {
        first = text + 1;
        stop = memchr(text, ']', size);
        if (!stop) return false;
        if (stop + 1 < end) colon = stop + 1;
    } else if ((colon = memchr(text, ':', size))) {
        stop = colon;
    }
    if (colon) {
        char number[6];
        if (*colon != ':' || end - colon - 1 > 5) return false;
        snprintf(number, sizeof number, "%.*s", (int)(end - colon - 1), colon + 1);
        if (err_is(text_parse_int(&port, number, 1, 65535))) return false;
    }
    if (stop == first || (size_t)(stop - first) >= sizeof p->host) return false;
    snprintf(p->host, sizeof p->host, "%.*s", (int)(stop - first), first);
    snprintf(p->port, sizeof p->port, "%d", (int)port);
    bool is_6 = strchr(p->host, ':') != NULL;
    snprintf(p->name, sizeof p->name, "%s%s%s:%s", is_6 ? "[" : "", p->host, is_6 ? "]" : "",
             p->port);
    text_tame(p->name);
    return true;
}

/* The value itself is in no error, because it may contain a password. */
static err parse(struct rpc_proxy *p, const char *value)
{
    const char *scheme = strstr(value, "://"), *at = value;
    if (scheme && (scheme - value != 4 || strncasecmp(value, "http", 4) != 0))
        return err_make(ERR_INPUT,
                        "%s: proxies of this kind cannot be used, expected http://HOST:PORT; to "
                        "connect without a proxy, name the coordinator's host in no_proxy",
                        p->variable);
    if (scheme) at = scheme + 3;
    size_t size = strcspn(at, "/?#");
    const char *user_end = NULL;
    for (size_t i = 0; i < size; i++) /* the last one: a password may contain others */
        if (at[i] == '@') user_end = at + i;
    if (user_end) {
        size_t n = (size_t)(user_end - at);
        if (!encode_userinfo(p->credentials, sizeof p->credentials, at, n))
            return err_make(ERR_INPUT, "%s: the user and password have more than %d bytes",
                            p->variable, USERINFO_BYTES);
        at += n + 1;
        size -= n + 1;
    }
    if (split_authority(p, at, size)) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: expected http://HOST:PORT or http://USER:PASSWORD@HOST:PORT",
                    p->variable);
}

static bool is_this_machine(const char *host)
{
    return strcasecmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 ||
           strcmp(host, "::1") == 0;
}

/* The first of the variables that is set, or NULL. */
static const char *first_set(const char *const *name, const char **value)
{
    for (; *name; name++)
        if ((*value = getenv(*name))) return *name;
    return NULL;
}

err rpc_proxy_find(struct rpc_proxy *out, const char *host, const char *port)
{
    static const char *const proxies[] = {"grpc_proxy", "https_proxy", "http_proxy", NULL};
    static const char *const lists[] = {"no_grpc_proxy", "no_proxy", NULL};
    const char *value = NULL, *list = NULL;
    struct rpc_proxy p = {.variable = first_set(proxies, &value)};
    const char *excluded = first_set(lists, &list);
    if (!p.variable || !*value || is_this_machine(host)) {
        *out = (struct rpc_proxy){0};
        return ERR_NONE;
    }
    if (excluded && is_listed(list, host, port)) {
        *out = (struct rpc_proxy){.excluded = excluded};
        return ERR_NONE;
    }
    TRY(parse(&p, value));
    *out = p;
    return ERR_NONE;
}

/* Other programs read these too. gRPC does not, so a user may believe that they are in force. */
static const char *unread(void)
{
    static const char *const names[] = {"HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "all_proxy",
                                        NULL};
    const char *value = NULL, *name = first_set(names, &value);
    return name && *value ? name : NULL;
}

err rpc_client_route(char *out, size_t bytes, const char *server)
{
    char host[256], port[6];
    struct rpc_proxy p;
    TRY(rpc_wire_split(host, sizeof host, port, server, "--server"));
    TRY(rpc_proxy_find(&p, host, port));
    const char *other = unread();
    if (p.variable)
        snprintf(out, bytes, "%s, from %s%s", p.name, p.variable,
                 *p.credentials ? ", with a user and a password" : "");
    else if (p.excluded)
        snprintf(out, bytes, "none: %s excludes %s", p.excluded, host);
    else if (other && !is_this_machine(host))
        snprintf(out, bytes,
                 "none (%s is set, but only grpc_proxy, https_proxy and http_proxy are "
                 "read)",
                 other);
    else
        snprintf(out, bytes, "none");
    return ERR_NONE;
}

/* ---------------------------------------------------------------- the tunnel */

static err send_all(int fd, const char *text, size_t size)
{
    while (size) {
        ssize_t n = send(fd, text, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return err_sys(n < 0 ? errno : EPIPE, "no request can be sent");
        text += n;
        size -= (size_t)n;
    }
    return ERR_NONE;
}

/* Byte by byte, because the bytes after the answer belong to the tunnel. */
static err read_answer(char out[ANSWER_BYTES], int fd, uint64_t timeout_ms)
{
    uint64_t end = text_now_ms() + timeout_ms;
    size_t n = 0;
    while (n + 1 < ANSWER_BYTES && text_now_ms() < end) {
        ssize_t got = recv(fd, out + n, 1, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (got < 0) return err_sys(errno, "no answer");
        if (got == 0) return err_make(ERR_MACHINE, "the proxy closed the connection");
        out[++n] = 0;
        if (n >= 4 && memcmp(out + n - 4, "\r\n\r\n", 4) == 0) return ERR_NONE;
    }
    if (n + 1 == ANSWER_BYTES)
        return err_make(ERR_MACHINE, "its answer is longer than %d bytes", ANSWER_BYTES);
    return err_make(ERR_MACHINE, "no answer within %d s", (int)(timeout_ms / 1000));
}

/* "HTTP/1.1 403 Denied": the status is what follows the first space. */
static err judge(char *answer)
{
    char *line_end = strstr(answer, "\r\n"), *status = strchr(answer, ' ');
    if (line_end) *line_end = 0;
    if (strncmp(answer, "HTTP/1.", 7) != 0 || !status || status >= line_end)
        return err_make(ERR_MACHINE, "its answer is not HTTP: is this the address of a proxy?");
    status++;
    if (*status == '2') return ERR_NONE;
    text_tame(status);
    return err_make(ERR_MACHINE, "it answers %.120s%s", status,
                    strncmp(status, "407", 3) == 0
                        ? ": it asks for a user and a password (http://USER:PASSWORD@HOST:PORT)"
                        : "");
}

err rpc_proxy_tunnel(int fd, const struct rpc_proxy *p, const char *server, uint64_t timeout_ms)
{
    char request[2048], answer[ANSWER_BYTES] = "";
    int n = snprintf(request, sizeof request, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s%s%s\r\n",
                     server, server, *p->credentials ? "Proxy-Authorization: Basic " : "",
                     p->credentials, *p->credentials ? "\r\n" : "");
    err e = n > 0 && (size_t)n < sizeof request ? ERR_NONE : err_make(ERR_INPUT, "a long address");
    if (!err_is(e)) e = send_all(fd, request, (size_t)n);
    if (!err_is(e)) e = read_answer(answer, fd, timeout_ms);
    if (!err_is(e)) e = judge(answer);
    if (!err_is(e)) return e;
    return err_make(e.kind, "the proxy %s (from %s): no connection to %s: %s", p->name, p->variable,
                    server, e.text);
}
