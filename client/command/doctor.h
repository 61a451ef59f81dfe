/* The findings of fedlora doctor. command_doctor.c checks the machine, doctor_member.c what a
 * member or an operator needs besides: configuration, certificate, disk, coordinator. */
#ifndef CLIENT_DOCTOR_H
#define CLIENT_DOCTOR_H

#include "client/command/command.h"
#include "client/session/remote.h"

/* One line of the result. `problem` describes a present or expected failure; NULL: none. */
struct finding {
    const char *name;
    char value[512];
    const char *problem;
};

/* More than all checks together add. */
enum { FINDINGS_MAX = 32 };
struct findings {
    struct finding finding[FINDINGS_MAX];
    size_t count;
    json_t *numbers; /* values of findings for scripts: "certificate_days_left": 29.6 */
};
struct finding *doctor_add(struct findings *f, const char *name);
void doctor_number(struct findings *f, const char *name, double value);

/* The file as join reads it, the files that it names, and the disk of its work directory. */
void doctor_join_file(struct findings *f, const char *path, struct arena *arena);
/* The certificate in use, without the network. */
void doctor_certificate(struct findings *f, const struct remote_options *o);
void doctor_server(struct findings *f, const struct remote_options *o);

#endif
