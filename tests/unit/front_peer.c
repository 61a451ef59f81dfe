#include "proto/front_peer.h"

#include <criterion/criterion.h>
#include <stdio.h>

enum { START = 1000000 };

Test(front_peer, a_refusal_doubles_up_to_a_minute_and_is_forgotten)
{
    struct front_peers peers = {0};
    const uint64_t wanted[] = {5000, 10000, 20000, 40000, 60000, 60000};
    uint64_t now = START;
    cr_assert_eq(front_peers_open(&peers, 10).kind, ERR_OK);
    struct front_peer *peer = front_peers_take(&peers, "fed/client/a", now);
    cr_assert_not(front_peer_is_refused(peer, now));
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        cr_expect_eq(front_peer_refuse(peer, now), wanted[i]);
        cr_expect(front_peer_is_refused(peer, now + wanted[i] - 1));
        cr_expect_not(front_peer_is_refused(peer, now + wanted[i]));
        now += wanted[i];
    }
    now += FRONT_PEER_FORGET_MS + 1;
    cr_expect_eq(front_peer_refuse(peer, now), 5000);
    cr_expect_eq(front_peers_take(&peers, "fed/client/a", now), peer);
    front_peers_close(&peers);
}

Test(front_peer, entries_in_use_or_refused_stay_and_others_give_way)
{
    struct front_peers peers = {0};
    char name[32];
    cr_assert_eq(front_peers_open(&peers, 3).kind, ERR_OK);
    struct front_peer *used = front_peers_take(&peers, "used", START);
    used->connections = 1;
    struct front_peer *refused = front_peers_take(&peers, "refused", START);
    front_peer_refuse(refused, START);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "10.0.0.%d", i);
        cr_assert_not_null(front_peers_take(&peers, name, START + 1));
        cr_assert_leq(peers.count, 3);
    }
    cr_expect_eq(front_peers_take(&peers, "used", START + 2), used);
    cr_expect_eq(front_peers_take(&peers, "refused", START + 2), refused);
    struct front_peer *third = front_peers_take(&peers, "third", START + 2);
    third->handshakes = 1;
    cr_expect_null(front_peers_take(&peers, "fourth", START + 2));
    cr_expect_not_null(front_peers_take(&peers, "fourth", START + 6000), "the refusal is over");
    front_peers_close(&peers);
}

Test(front_peer, is_reported_once_a_minute_with_the_number_left_out)
{
    struct front_peer peer = {0};
    uint64_t left_out = 99;
    cr_expect(front_peer_may_report(&peer, &left_out, START));
    cr_expect_eq(left_out, 0);
    for (int i = 0; i < 7; i++)
        cr_expect_not(front_peer_may_report(&peer, &left_out, START + 59999));
    cr_expect(front_peer_may_report(&peer, &left_out, START + 60000));
    cr_expect_eq(left_out, 7);
}
