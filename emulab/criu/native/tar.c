/*
 * tar - found by CRIU before the system's: the same, but without compression. CRIU saves the contents of the guest's
 * tmpfs mounts with `tar --gzip` inside the freeze; starting a shell and gzip for each takes longer than the whole rest,
 * and the images are compressed on the wire anyway. The restore reads what the dump wrote, so both sides leave it out.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **arguments)
{
	int kept = 1;
	for (int i = 1; i < count; i++)
		if (strcmp(arguments[i], "--gzip"))
			arguments[kept++] = arguments[i];
	arguments[kept] = NULL;
	unsetenv("LD_PRELOAD"); /* the shim is for CRIU, and takes its time to load */
	execv("/usr/bin/tar", arguments);
	return 127;
}
