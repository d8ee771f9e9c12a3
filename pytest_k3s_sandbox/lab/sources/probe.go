// Says what a Go program sees: probe GOROUTINES CALL PATH [CALL PATH ...], as probe.c does for C.
//
// CALL is statfs, fstatfs or openat (os.ReadFile).
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

const rounds = 3

func answer(call, path string) (string, error) {
	var stat syscall.Statfs_t
	switch call {
	case "statfs":
		err := syscall.Statfs(path, &stat)
		return fmt.Sprintf("%#x", stat.Type), err
	case "fstatfs":
		file, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer file.Close()
		err = syscall.Fstatfs(int(file.Fd()), &stat)
		return fmt.Sprintf("%#x", stat.Type), err
	default:
		text, err := os.ReadFile(path)
		line, _, _ := strings.Cut(string(text), "\n")
		return line, err
	}
}

func main() {
	count, _ := strconv.Atoi(os.Args[1])
	var group sync.WaitGroup
	var lock sync.Mutex
	seen := map[string]bool{}
	for i := 0; i < count; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			runtime.LockOSThread()
			for round := 0; round < rounds; round++ {
				for word := 2; word+1 < len(os.Args); word += 2 {
					text, err := answer(os.Args[word], os.Args[word+1])
					var number syscall.Errno
					if errors.As(err, &number) {
						text = fmt.Sprintf("errno %d", int(number))
					}
					lock.Lock()
					seen[fmt.Sprintf("%s %s %s", os.Args[word], os.Args[word+1], text)] = true
					lock.Unlock()
				}
				if i == 0 {
					runtime.GC()
				}
			}
		}()
	}
	group.Wait()
	var lines []string
	for line := range seen {
		lines = append(lines, line)
	}
	sort.Strings(lines)
	fmt.Println(strings.Join(lines, "\n"))
}
