#include "coordinator/config.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16];

static void write_file(const char *text)
{
    if (!dir[0]) support_dir_make(dir);
    snprintf(path, sizeof path, "%s/f.ini", dir);
    ok(file_write(path, text, strlen(text), true));
}

static err read_with(struct config *c, const char *option)
{
    char *argv[] = {"--config", path, (char *)(uintptr_t)option};
    return config_open(c, option ? 3 : 2, argv);
}

static const char good[] = "[server]\nca = c\ncert = s\nkey = k\n[store]\npath = /tmp/x\n"
                           "[federation]\nname = f\nmembers = north, east ,south\n";

Test(config, reads_the_file_then_the_command_line)
{
    struct config c;
    write_file(good);
    ok(read_with(&c, "--listen=0.0.0.0:1"));
    cr_expect_str_eq(c.listen, "0.0.0.0:1");
    cr_expect_str_eq(c.path, "/tmp/x");
    cr_expect_eq(c.allowed.count, 3);
    cr_expect(config_allows(&c, "east") && !config_allows(&c, "east ") &&
              !config_allows(&c, "west"));
    cr_expect(config_allows_admin(&c, "anyone"));
    cr_expect_eq(c.keep_states, 2);
    cr_expect_eq(c.absent_ms, 90000);
    config_close(&c);
    ok(read_with(&c, "--set=federation.members=")); /* the store has them */
    cr_expect_eq(c.allowed.count, 0);
    config_close(&c);
    ok(read_with(&c, "--set=federation.admins=boss"));
    cr_expect(config_allows_admin(&c, "boss") && !config_allows_admin(&c, "anyone"));
    config_close(&c);
    support_dir_remove(dir);
}

Test(config, keeps_those_of_the_store_when_the_file_is_read_again)
{
    static const char *from_store[] = {"west"};
    const struct option_list members = {1, from_store}, none = {0};
    struct config_changes changes;
    struct config c;
    write_file(good);
    ok(read_with(&c, NULL));
    ok(config_allow(&c, &members, &none));
    write_file("[server]\nca = c\ncert = s\nkey = k\n[store]\npath = /tmp/x\n"
               "[federation]\nname = f\nmembers = north\n");
    char *argv[] = {"--config", path};
    ok(config_reread(&c, &changes, 2, argv));
    cr_expect_eq(c.listed.count, 1);
    cr_expect(config_allows(&c, "west") && !config_allows(&c, "north"));
    config_close(&c);
    support_dir_remove(dir);
}

Test(config, says_what_is_wrong_and_where)
{
    struct config c;
    char *nothing[] = {"--quiet"};
    write_file(good);
    refused(read_with(&c, "--set=store.keep_states=1"), ERR_INPUT, "keep_states");
    refused(read_with(&c, "--set=federation.members=a,b/c"), ERR_INPUT, "\"b/c\" is not a name");
    refused(read_with(&c, "--set=enroll.signer=vault"), ERR_INPUT, "command:/path");
    refused(read_with(&c, "--set=enroll.signer=command:vault"), ERR_INPUT, "command:/path");
    refused(read_with(&c, "--set=enroll.key=k"), ERR_INPUT, "expected both or none");
    refused(read_with(&c, "--set=enroll.listen=127.0.0.1:1"), ERR_INPUT, "needs enroll.cert");
    refused(read_with(&c, "--lisen=x"), ERR_INPUT, "listen");
    refused(read_with(&c, "--set=server.cert="), ERR_INPUT, "server.cert: is empty");
    refused(config_open(&c, 0, nothing), ERR_INPUT, "--config FILE is needed");
    write_file("[server]\nlisten = x\nlistn = y\n");
    refused(read_with(&c, NULL), ERR_INPUT, "f.ini:3");
    support_dir_remove(dir);
}

Test(config, the_sample_in_deploy_is_what_the_program_prints)
{
    struct bytes sample = {.max = 1 << 20};
    char *text = NULL, at[SUPPORT_PATH_BYTES];
    size_t size;
    support_source(at, sizeof at, "deploy/fedlorad.ini");
    ok(file_read_all(&text, &size, at, 1 << 20));
    ok(config_sample(&sample));
    cr_expect_str_eq(text, (char *)sample.data);
    free(text);
    bytes_close(&sample);
}
