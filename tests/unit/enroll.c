/* Enrolment by files. The `openssl` command is the authority, and reads everything that is made. */
#include "client/identity/enroll.h"

#include "base/file.h"
#include "proto/certificate.h"
#include "tests/support/rpc_fixture.h"
#include "tests/support/support.h"

#include <errno.h>
#include <sys/stat.h>

static char dir[SUPPORT_PATH_BYTES], home[SUPPORT_PATH_BYTES + 16];

static void begin(void)
{
    fixture_certs();
    support_dir_make(dir);
    snprintf(home, sizeof home, "%s/home", dir);
}

static void end(void)
{
    support_dir_remove(dir);
}

TestSuite(enroll, .init = begin, .fini = end);

/* Runs in the folder of the test; true if it succeeded. */
static bool shell(const char *format, ...)
{
    char command[4096], whole[16384];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    snprintf(whole, sizeof whole, "cd %s && (%s) >said 2>&1", dir, command);
    return system(whole) == 0;
}

static const char *path_of(const char *name)
{
    static char path[4][SUPPORT_PATH_BYTES + 64];
    static int next;
    char *out = path[next++ % 4];
    snprintf(out, sizeof path[0], "%s/%s", dir, name);
    return out;
}

static struct enroll_hash hash_of_ca(const char *pem)
{
    char text[128] = "", command[1024];
    struct enroll_hash hash;
    snprintf(command, sizeof command,
             "openssl x509 -in %s -outform DER | openssl dgst -sha256 -r | cut -c1-64", pem);
    FILE *pipe = popen(command, "r");
    cr_assert(pipe != NULL && fgets(text, sizeof text, pipe) != NULL);
    pclose(pipe);
    text[strcspn(text, "\n")] = 0;
    ok(enroll_token_hash_parse(&hash, text));
    return hash;
}

/* Signs north.csr into north.crt, as an operator without Fedlora would. */
static void sign(const char *uri, const char *use)
{
    cr_assert(shell("printf 'extendedKeyUsage=%s\\nsubjectAltName=URI:%s\\n' > ext && openssl x509 "
                    "-req -in north.csr -CA " FIXTURE_CERTS "/ca.pem -CAkey " FIXTURE_CERTS
                    "/ca.key -set_serial 77 -days 30 -extfile ext -out leaf && (echo Server: "
                    "fed.example.org:443; cat leaf " FIXTURE_CERTS "/ca.pem) > north.crt",
                    use, uri));
}

static struct enroll_answer answer(void)
{
    return (struct enroll_answer){.path = path_of("north.crt"),
                                  .ca = hash_of_ca(FIXTURE_CERTS "/ca.pem")};
}

static unsigned mode_of(const char *path)
{
    struct stat st = {0};
    cr_assert_eq(stat(path, &st), 0, "%s", path);
    return st.st_mode & 0777;
}

Test(enroll, asks_for_a_key_that_only_this_machine_has)
{
    struct digest key, again;
    umask(0);
    ok(enroll_request(&key, home, path_of("north.csr"), false));
    cr_expect(shell("openssl req -in north.csr -verify -noout"), "its signature");
    cr_expect(shell("test \"$(openssl req -in north.csr -pubkey -noout)\" = "
                    "\"$(openssl pkey -in home/enroll.key -pubout)\""));
    cr_expect(shell("openssl pkey -in home/enroll.key -text -noout | grep -q prime256v1"));
    cr_expect(!shell("grep -q PRIVATE north.csr"));
    cr_expect_eq(mode_of(path_of("home/enroll.key")), 0600);
    ok(enroll_request(&again, home, path_of("north.csr"), true));
    cr_expect(digest_equal(&key, &again), "a second request is for the key that waits");
    refused(enroll_request(&again, home, path_of("north.csr"), false), ERR_INPUT, "exists already");
}

Test(enroll, accepts_the_answer_and_writes_files_that_others_read)
{
    struct digest key;
    struct enroll_result result;
    ok(enroll_request(&key, home, path_of("north.csr"), false));
    sign("fl://fed/client/north", "clientAuth");
    struct enroll_answer a = answer();
    ok(enroll_accept(&result, home, &a));
    cr_expect_str_eq(result.self.id, "north");
    cr_expect_eq(result.self.role, RPC_CLIENT);
    cr_expect(result.wrote_config);
    cr_expect(!file_exists(path_of("home/enroll.key")), "the key is in member.pem now");
    cr_expect_eq(mode_of(path_of("home/member.pem")), 0600);
    cr_expect(shell("openssl verify -purpose sslclient -CAfile home/ca.pem home/member.pem"));
    cr_expect(shell("test \"$(openssl x509 -in home/member.pem -pubkey -noout)\" = "
                    "\"$(openssl pkey -in home/member.pem -pubout)\""));
    cr_expect(shell("openssl x509 -in home/ca.pem > x && openssl x509 -in " FIXTURE_CERTS
                    "/ca.pem > y && cmp x y"));
    ok(rpc_tls_check(path_of("home/ca.pem"), path_of("home/member.pem"), path_of("home/member.pem"),
                     /*server*/ false, NULL));
    cr_expect(shell("grep -qx 'address = fed.example.org:443' home/client.ini"));
    cr_expect(shell("grep -qx \"cert = $PWD/home/member.pem\" home/client.ini"));
    /* 30 days, from which two thirds less up to a tenth are 17 to 20. */
    int64_t now = (int64_t)(text_wall_ms() / 1000), day = 24 * 60 * 60;
    cr_expect(result.renew_s > now + 16 * day && result.renew_s < now + 21 * day);
}

Test(enroll, keeps_a_configuration_that_is_there)
{
    struct digest key;
    struct enroll_result result;
    ok(enroll_request(&key, home, path_of("north.csr"), false));
    cr_assert(shell("echo mine > home/client.ini"));
    sign("fl://fed/client/north", "clientAuth");
    struct enroll_answer a = answer();
    ok(enroll_accept(&result, home, &a));
    cr_expect(!result.wrote_config);
    cr_expect(shell("grep -qx mine home/client.ini"));
}

Test(enroll, refuses_answers_that_are_not_for_this_key_or_authority)
{
    struct digest key;
    struct enroll_result result;
    struct enroll_answer a = answer();
    refused(enroll_accept(&result, home, &a), ERR_INPUT, "make the key and the request first");
    ok(enroll_request(&key, home, path_of("north.csr"), false));
    refused(enroll_accept(&result, home, &a), ERR_INPUT, "north.crt: no such file");
    sign("fl://fed/client/north", "serverAuth");
    refused(enroll_accept(&result, home, &a), ERR_MACHINE, "the new certificate");
    sign("fl://fed/client/north", "clientAuth");
    a.ca = hash_of_ca(FIXTURE_CERTS "/foreign/ca.pem");
    refused(enroll_accept(&result, home, &a), ERR_INPUT, "none of the 2 certificates");
    a = answer();
    cr_assert(shell("cat leaf " FIXTURE_CERTS "/foreign/ca.pem > north.crt"));
    refused(enroll_accept(&result, home, &a), ERR_INPUT, "none of the 2 certificates");
    cr_assert(shell("cat " FIXTURE_CERTS "/a.pem " FIXTURE_CERTS "/ca.pem > north.crt"));
    refused(enroll_accept(&result, home, &a), ERR_MACHINE, "the new certificate");
    cr_expect(!file_exists(path_of("home/member.pem")));
    cr_expect(file_exists(path_of("home/enroll.key")), "the right answer can still come");
}

Test(enroll, does_not_replace_the_identity_of_another_member_unasked)
{
    struct digest key;
    struct enroll_result result;
    struct enroll_answer a = answer();
    ok(enroll_request(&key, home, path_of("north.csr"), false));
    sign("fl://fed/client/north", "clientAuth");
    ok(enroll_accept(&result, home, &a));
    ok(enroll_request(&key, home, path_of("north.csr"), true));
    sign("fl://fed/client/south", "clientAuth");
    refused(enroll_accept(&result, home, &a), ERR_INPUT,
            "this folder has the identity north of federation fed, expected south");
    cr_expect(shell("openssl x509 -in home/member.pem -noout -text | grep -q client/north"));
    a.force = true;
    ok(enroll_accept(&result, home, &a));
    cr_expect(shell("openssl x509 -in home/member.pem -noout -text | grep -q client/south"));
}

static int (*real_rename)(const char *from, const char *to);
static int fail_member(const char *from, const char *to)
{
    if (strstr(to, "member.pem") == NULL) return real_rename(from, to);
    errno = EIO;
    return -1;
}

/* A renewal replaces the file while connections are made with it. */
Test(enroll, an_interrupted_replacement_leaves_the_old_pair)
{
    struct digest key;
    struct enroll_result result;
    struct enroll_answer a = answer();
    ok(enroll_request(&key, home, path_of("north.csr"), false));
    sign("fl://fed/client/north", "clientAuth");
    ok(enroll_accept(&result, home, &a));
    cr_assert(shell("cp home/member.pem before"));
    ok(enroll_request(&key, home, path_of("north.csr"), true));
    sign("fl://fed/client/north", "clientAuth");
    real_rename = file_disk.rename;
    file_disk.rename = fail_member;
    refused(enroll_accept(&result, home, &a), ERR_MACHINE, "member.pem");
    file_disk.rename = real_rename;
    cr_expect(shell("cmp before home/member.pem"));
    cr_expect(file_exists(path_of("home/enroll.key")));
    ok(enroll_accept(&result, home, &a));
    cr_expect(!shell("cmp before home/member.pem"));
}

/* The folder of a package belongs to the user of the service. */
Test(enroll, gives_files_of_root_to_the_owner_of_the_folder)
{
    struct digest key;
    struct stat st;
    if (geteuid() != 0) cr_skip_test("only root can give files away");
    cr_assert(shell("mkdir home && chown 65534 home"));
    ok(enroll_request(&key, home, path_of("north.csr"), false));
    cr_assert_eq(stat(path_of("home/enroll.key"), &st), 0);
    cr_expect_eq(st.st_uid, 65534);
    cr_expect_eq(st.st_mode & 0777, 0600);
    /* The file of a service in root's folder stays the service's. */
    cr_assert(shell("chown 0 home && chown 65533 home/enroll.key"));
    struct bytes text = {.data = (uint8_t *)"x", .size = 1};
    ok(identity_write(path_of("home/enroll.key"), &text, true));
    cr_assert_eq(stat(path_of("home/enroll.key"), &st), 0);
    cr_expect_eq(st.st_uid, 65533);
}

Test(enroll, takes_notes_only_from_the_head_of_a_file)
{
    char note[IDENTITY_NOTE_BYTES] = "untouched";
    cr_expect(identity_note(note, "A: 1\nToken: ab\n-----BEGIN X-----\nToken: cd\n", "Token"));
    cr_expect_str_eq(note, "ab");
    cr_expect(!identity_note(note, "-----BEGIN X-----\nToken: cd\n", "Token"));
    cr_expect(!identity_note(note, "Tokens: cd\n", "Token"));
    cr_expect(!identity_note(note, "", "Token"));
    cr_expect(identity_note(note, "Token: cd", "Token"));
    cr_expect_str_eq(note, "cd");
}
