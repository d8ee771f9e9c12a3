package main

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

const nobody = 65535 // the user of the usual pause image

// startPause starts the first process of a new PID namespace, in the other namespaces of the calling thread.
func startPause() (*exec.Cmd, chan runc.Exit, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	command := exec.Command(path, "pause")
	command.Dir, command.Env = "/", []string{}
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true}
	exit, err := runc.Monitor.Start(command)
	return command, exit, err
}

// pause shows an empty root to the containers that share its PID namespace, drops its privileges, and reaps.
func pause() error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	if err := unix.Mount("pause", "/run", "tmpfs", unix.MS_RDONLY, "size=4k"); err != nil {
		return err
	}
	if err := unix.Chroot("/run"); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setgid(nobody); err != nil {
		return err
	}
	if err := syscall.Setuid(nobody); err != nil {
		return err
	}
	for range children {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
	return nil
}
