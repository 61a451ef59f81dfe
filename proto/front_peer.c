#include "proto/front_peer.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PEERS_BUCKETS = 4096, PEER_REPORT_MS = 60 * 1000 };

err front_peers_open(struct front_peers *out, size_t max)
{
    struct front_peers peers = {.max = max};
    peers.bucket = calloc(PEERS_BUCKETS, sizeof *peers.bucket);
    if (peers.bucket == NULL) return err_sys(ENOMEM, "a table of peers");
    randombytes_buf(peers.key, sizeof peers.key);
    *out = peers;
    return ERR_NONE;
}

void front_peers_close(struct front_peers *peers)
{
    for (size_t i = 0; peers->bucket != NULL && i < PEERS_BUCKETS; i++)
        for (struct front_peer *peer = peers->bucket[i], *next; peer != NULL; peer = next) {
            next = peer->next;
            free(peer);
        }
    free(peers->bucket);
    *peers = (struct front_peers){0};
}

/* A stranger chooses its address, so the hash has a secret key: nobody can fill one bucket. */
static struct front_peer **bucket_of(struct front_peers *peers, const char *name)
{
    unsigned char hash[crypto_shorthash_BYTES];
    crypto_shorthash(hash, (const unsigned char *)name, strlen(name), peers->key);
    size_t index = ((size_t)hash[0] << 8 | hash[1]) % PEERS_BUCKETS;
    return &peers->bucket[index];
}

/* An idle entry can be dropped without giving its peer anything: it is not refused, its last
 * offence is forgotten, and its buckets have filled up again. */
static bool is_idle(const struct front_peer *peer, uint64_t now_ms)
{
    return peer->connections == 0 && peer->handshakes == 0 &&
           now_ms - peer->seen_ms > FRONT_PEER_FORGET_MS &&
           (peer->offences == 0 || now_ms - peer->offence_ms > FRONT_PEER_FORGET_MS);
}

static bool is_free(const struct front_peer *peer, uint64_t now_ms)
{
    return peer->connections == 0 && peer->handshakes == 0 && peer->refused_until_ms <= now_ms;
}

static void drop(struct front_peers *peers, uint64_t now_ms,
                 bool (*may)(const struct front_peer *peer, uint64_t now_ms))
{
    for (size_t i = 0; i < PEERS_BUCKETS; i++)
        for (struct front_peer **at = &peers->bucket[i]; *at != NULL;) {
            struct front_peer *peer = *at;
            if (may(peer, now_ms)) {
                *at = peer->next;
                free(peer);
                peers->count--;
            } else {
                at = &peer->next;
            }
        }
}

struct front_peer *front_peers_take(struct front_peers *peers, const char *name, uint64_t now_ms)
{
    struct front_peer **bucket = bucket_of(peers, name);
    for (struct front_peer *peer = *bucket; peer != NULL; peer = peer->next)
        if (strcmp(peer->name, name) == 0) {
            peer->seen_ms = now_ms;
            return peer;
        }
    /* Idle entries go when the table has doubled since the last time, so the cost is spread. */
    if (peers->count >= peers->max || peers->count >= 2 * peers->swept + 1024) {
        drop(peers, now_ms, is_idle);
        if (peers->count >= peers->max) drop(peers, now_ms, is_free);
        peers->swept = peers->count;
        if (peers->count >= peers->max) return NULL;
    }
    struct front_peer *peer = calloc(1, sizeof *peer);
    if (peer == NULL) return NULL;
    snprintf(peer->name, sizeof peer->name, "%s", name);
    peer->seen_ms = now_ms;
    front_budget_fill(&peer->budget, now_ms);
    peer->next = *bucket;
    *bucket = peer;
    peers->count++;
    return peer;
}

uint64_t front_peer_refuse(struct front_peer *peer, uint64_t now_ms)
{
    if (now_ms - peer->offence_ms > FRONT_PEER_FORGET_MS) peer->offences = 0;
    uint64_t ms = FRONT_PEER_REFUSE_MS;
    for (unsigned i = 0; i < peer->offences && ms < FRONT_PEER_REFUSE_MOST_MS; i++)
        ms *= 2;
    if (ms > FRONT_PEER_REFUSE_MOST_MS) ms = FRONT_PEER_REFUSE_MOST_MS;
    peer->offences++;
    peer->offence_ms = now_ms;
    peer->refused_until_ms = now_ms + ms;
    front_budget_fill(&peer->budget, now_ms);
    return ms;
}

bool front_peer_is_refused(const struct front_peer *peer, uint64_t now_ms)
{
    return now_ms < peer->refused_until_ms;
}

bool front_peer_may_report(struct front_peer *peer, uint64_t *left_out, uint64_t now_ms)
{
    if (peer->reported && now_ms - peer->reported_ms < PEER_REPORT_MS) {
        peer->left_out++;
        return false;
    }
    *left_out = peer->left_out;
    peer->left_out = 0;
    peer->reported = true;
    peer->reported_ms = now_ms;
    return true;
}
