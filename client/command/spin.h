/* How threads wait for each other. */
#ifndef CLIENT_COMMAND_SPIN_H
#define CLIENT_COMMAND_SPIN_H

/* Called first in main(): starts the program once more with a short spin time, unless the user has
 * chosen one. */
void spin_briefly(char **argv);

#endif
