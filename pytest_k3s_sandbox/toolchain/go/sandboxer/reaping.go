package main

import (
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// commands reaps runs of the OCI runtime apart from the containers' processes.
//
// The shim's own reaper hands each exit to all that wait, one exit after another, and waits a second for one
// that does not take it. The task service does not take exits while it waits for a run of the runtime, so that
// thirty containers that end at once take a minute. It was made for the containers of one pod.
type commands struct {
	mutex   sync.Mutex
	running map[int]chan runc.Exit
}

func newCommands() *commands {
	c := &commands{running: map[int]chan runc.Exit{}}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	all := reaper.Default.Subscribe()
	go func() {
		for exit := range all { // a run that ended between reap and reaper.Reap
			c.tell(exit)
		}
	}()
	others := make(chan struct{}, 1)
	go func() {
		for range others {
			_ = reaper.Reap()
		}
	}()
	go func() {
		for range signals {
			c.reap()
			select {
			case others <- struct{}{}:
			default:
			}
		}
	}()
	return c
}

// reap takes the exits of the runtime's runs, and of nothing else.
func (c *commands) reap() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for pid := range c.running {
		var status unix.WaitStatus
		if got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err == nil && got == pid {
			code := status.ExitStatus()
			if status.Signaled() {
				code = 128 + int(status.Signal())
			}
			c.told(runc.Exit{Timestamp: time.Now(), Pid: pid, Status: code})
		}
	}
}

func (c *commands) tell(exit runc.Exit) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.told(exit)
}

func (c *commands) told(exit runc.Exit) {
	if waiting, ok := c.running[exit.Pid]; ok {
		waiting <- exit // has room for it
		delete(c.running, exit.Pid)
	}
}

// Start implements go-runc's ProcessMonitor.
func (c *commands) Start(command *exec.Cmd) (chan runc.Exit, error) {
	c.mutex.Lock() // so that its exit is not looked for before it is known
	defer c.mutex.Unlock()
	if err := command.Start(); err != nil {
		return nil, err
	}
	waiting := make(chan runc.Exit, 1)
	c.running[command.Process.Pid] = waiting
	return waiting, nil
}

// StartLocked implements go-runc's ProcessMonitor.
func (c *commands) StartLocked(command *exec.Cmd) (chan runc.Exit, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return c.Start(command)
}

// Wait implements go-runc's ProcessMonitor.
func (c *commands) Wait(command *exec.Cmd, waiting chan runc.Exit) (int, error) {
	exit := <-waiting
	_ = command.Wait() // its output is complete then
	return exit.Status, nil
}
