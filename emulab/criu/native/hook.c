/*
 * hook - CRIU's action script. Tells the agent which stage was reached and waits for its verdict.
 *
 * Sends "ACTION INIT_PID\n" to the unix socket in EMULAB_HOOK_SOCKET; the answer's first byte is the exit code as a
 * digit. No answer (the agent is gone) is a refusal: at post-dump CRIU then resumes the guest, at post-restore it ends
 * what it restored.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(void)
{
	const char *path = getenv("EMULAB_HOOK_SOCKET"), *action = getenv("CRTOOLS_SCRIPT_ACTION"), *pid = getenv("CRTOOLS_INIT_PID");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char text[128], answer;
	if (!path || !action || strlen(path) >= sizeof address.sun_path)
		return 1;
	strcpy(address.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
		return 1;
	int length = snprintf(text, sizeof text, "%s %s\n", action, pid ? pid : "0");
	if (write(fd, text, length) != length || read(fd, &answer, 1) != 1)
		return 1;
	return answer == '0' ? 0 : 1;
}
