/* SIGHUP and `systemctl reload`: certificates, the lists of members and operators, limits,
 * retention and the log are read again. Each part that cannot be read stays as it was, so that a
 * bad edit or a bad renewal cuts nobody off. */
#ifndef COORDINATOR_RELOAD_H
#define COORDINATOR_RELOAD_H

#include "coordinator/serve/serve.h"

/* `config` is that of `s`; argc and argv are the arguments it was read from. Loop thread. */
void reload(struct serve *s, struct config *config, int argc, char **argv);

#endif
