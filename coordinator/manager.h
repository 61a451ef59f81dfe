/* The state of the service for the service manager, as `systemctl status` shows it, and the signs
 * of life that WatchdogSec asks for (base/notify.h). Loop thread. Order: manager_starting(),
 * manager_ready(), then manager_turn() in each turn, manager_stopping(). */
#ifndef COORDINATOR_MANAGER_H
#define COORDINATOR_MANAGER_H

#include "coordinator/serve/serve.h"

struct manager {
    uint64_t every_ms, next_ms; /* signs of life; 0: nobody asks for them */
    size_t open, runs;          /* as the last status said */
    bool reloading;
};

void manager_starting(void);
void manager_ready(struct manager *m, const struct serve *s);
void manager_turn(struct manager *m, const struct serve *s, uint64_t now_ms);
/* A reload begins; the next turn says that it has ended. */
void manager_reloading(struct manager *m);
void manager_stopping(void);

#endif
