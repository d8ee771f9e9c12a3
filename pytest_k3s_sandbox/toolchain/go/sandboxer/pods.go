package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	sandbox "github.com/containerd/containerd/api/services/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const shmBytes = 64 << 20 // defaultShmSize of containerd's internal/cri/server/podsandbox

// pod is a sandbox: a thread or a process that holds its namespaces, and files for its containers.
type pod struct {
	config  *cri.PodSandboxConfig
	netns   string
	holder  int // the thread, or the process: a path below /proc
	created time.Time
	stopped time.Time
	stop    chan struct{} // closed by Stop: the thread ends
	ended   chan struct{} // closed when it has
	once    sync.Once
}

// pods implements containerd's sandbox controller.
type pods struct {
	sandbox.UnimplementedControllerServer
	tasks, root, state string
	mutex              sync.Mutex
	known              map[string]*pod
}

func newPods(tasks, root, state string) *pods {
	return &pods{tasks: tasks, root: root, state: state, known: map[string]*pod{}}
}

func (p *pods) get(id string) (*pod, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if found, ok := p.known[id]; ok {
		return found, nil
	}
	return nil, status.Errorf(codes.NotFound, "sandbox %s is not known", id)
}

func namespaces(config *cri.PodSandboxConfig) *cri.NamespaceOption {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (p *pods) Create(_ context.Context, r *sandbox.ControllerCreateRequest) (*sandbox.ControllerCreateResponse, error) {
	config := &cri.PodSandboxConfig{}
	if err := config.Unmarshal(r.GetOptions().GetValue()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "sandbox %s: its configuration: %v", r.SandboxID, err)
	}
	if users := namespaces(config).GetUsernsOptions(); users != nil && users.GetMode() != cri.NamespaceMode_NODE {
		return nil, status.Error(codes.Unimplemented, "user namespaces need a RuntimeClass with the handler runc")
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if _, ok := p.known[r.SandboxID]; ok {
		return nil, status.Errorf(codes.AlreadyExists, "sandbox %s", r.SandboxID)
	}
	p.known[r.SandboxID] = &pod{
		config: config, netns: r.NetnsPath, stop: make(chan struct{}), ended: make(chan struct{}),
	}
	return &sandbox.ControllerCreateResponse{SandboxID: r.SandboxID}, nil
}

func (p *pods) Start(_ context.Context, r *sandbox.ControllerStartRequest) (*sandbox.ControllerStartResponse, error) {
	found, err := p.get(r.SandboxID)
	if err != nil {
		return nil, err
	}
	if err = p.files(r.SandboxID, found.config); err == nil {
		err = found.hold()
	}
	if err != nil {
		p.forget(r.SandboxID) // containerd does not ask for it again
		return nil, status.Errorf(codes.Internal, "sandbox %s: %v", r.SandboxID, err)
	}
	found.created = time.Now()
	return &sandbox.ControllerStartResponse{
		SandboxID: r.SandboxID,
		Pid:       uint32(found.holder),
		CreatedAt: timestamppb.New(found.created),
		Address:   p.tasks,
		Version:   3,
	}, nil
}

// hold starts the thread that is in the pod's namespaces. It stays locked, so the thread ends with the function.
// Containers that share a PID namespace need a first process there (pid_namespaces(7)), which the thread starts.
func (p *pod) hold() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		p.holder = unix.Gettid()
		err := p.enter()
		var first *exec.Cmd
		var exit chan runc.Exit
		if err == nil && namespaces(p.config).GetPid() == cri.NamespaceMode_POD {
			if first, exit, err = startPause(); err == nil {
				p.holder = first.Process.Pid
			}
		}
		result <- err
		if err == nil {
			select {
			case <-p.stop:
				if first != nil {
					_ = first.Process.Kill()
					_, _ = runc.Monitor.Wait(first, exit)
				}
			case <-exit:
			}
		}
		p.stopped = time.Now()
		close(p.ended)
	}()
	return <-result
}

func (p *pod) enter() error {
	options, flags := namespaces(p.config), 0
	if options.GetIpc() != cri.NamespaceMode_NODE {
		flags |= unix.CLONE_NEWIPC
	}
	if options.GetNetwork() != cri.NamespaceMode_NODE {
		flags |= unix.CLONE_NEWUTS
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	if p.netns != "" {
		file, err := os.Open(p.netns)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s: %w", p.netns, err)
		}
	}
	if name := p.config.GetHostname(); name != "" && flags&unix.CLONE_NEWUTS != 0 {
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("host name %s: %w", name, err)
		}
	}
	sysctls := p.config.GetLinux().GetSysctls()
	if len(sysctls) > 0 {
		if err := ownProc(); err != nil {
			return fmt.Errorf("a /proc for sysctls: %w", err)
		}
	}
	for name, text := range sysctls {
		if err := write("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), text); err != nil {
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	return nil
}

// write writes to a file that is there.
func write(path, text string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(text)
	return err
}

// ownProc gives the thread a /proc that nothing is mounted over, as a container has it.
func ownProc() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	return unix.Mount("proc", "/proc", "proc", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// files writes what the CRI plugin mounts into containers: setupSandboxFiles of containerd's internal/cri.
func (p *pods) files(id string, config *cri.PodSandboxConfig) error {
	root := filepath.Join(p.root, "sandboxes", id)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	name := config.GetHostname()
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return err
		}
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return err
	}
	var resolv []byte
	if dns := config.GetDnsConfig(); dns != nil {
		resolv = []byte(resolver(dns))
	} else if resolv, err = os.ReadFile("/etc/resolv.conf"); err != nil {
		return err
	}
	for file, content := range map[string][]byte{"hostname": []byte(name + "\n"), "hosts": hosts, "resolv.conf": resolv} {
		if err := os.WriteFile(filepath.Join(root, file), content, 0o644); err != nil {
			return err
		}
	}
	if namespaces(config).GetIpc() == cri.NamespaceMode_NODE {
		return nil
	}
	shm := p.shm(id)
	if err := os.MkdirAll(shm, 0o700); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV)
	return unix.Mount("shm", shm, "tmpfs", flags, fmt.Sprintf("mode=1777,size=%d", shmBytes))
}

func resolver(dns *cri.DNSConfig) string {
	text := ""
	if len(dns.Searches) > 0 {
		text += "search " + strings.Join(dns.Searches, " ") + "\n"
	}
	for _, server := range dns.Servers {
		text += "nameserver " + server + "\n"
	}
	if len(dns.Options) > 0 {
		text += "options " + strings.Join(dns.Options, " ") + "\n"
	}
	return text
}

func (p *pods) shm(id string) string { return filepath.Join(p.state, "sandboxes", id, "shm") }

func (p *pods) clean(id string) {
	if err := unix.Unmount(p.shm(id), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		fmt.Fprintln(os.Stderr, "k3s-sandboxer: unmount", p.shm(id), err)
	}
	for _, folder := range []string{p.root, p.state} {
		if err := os.RemoveAll(filepath.Join(folder, "sandboxes", id)); err != nil {
			fmt.Fprintln(os.Stderr, "k3s-sandboxer:", err)
		}
	}
}

func (p *pods) forget(id string) {
	p.clean(id)
	p.mutex.Lock()
	defer p.mutex.Unlock()
	delete(p.known, id)
}

func (p *pods) Platform(context.Context, *sandbox.ControllerPlatformRequest) (*sandbox.ControllerPlatformResponse, error) {
	return &sandbox.ControllerPlatformResponse{
		Platform: &types.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH},
	}, nil
}

func (p *pods) Stop(_ context.Context, r *sandbox.ControllerStopRequest) (*sandbox.ControllerStopResponse, error) {
	found, err := p.get(r.SandboxID)
	if err != nil {
		return nil, err
	}
	found.once.Do(func() { close(found.stop) })
	if !found.created.IsZero() { // a thread holds it
		<-found.ended
	}
	return &sandbox.ControllerStopResponse{}, nil
}

func (p *pods) Wait(ctx context.Context, r *sandbox.ControllerWaitRequest) (*sandbox.ControllerWaitResponse, error) {
	found, err := p.get(r.SandboxID)
	if err != nil {
		return nil, err
	}
	select {
	case <-found.ended:
		return &sandbox.ControllerWaitResponse{ExitedAt: timestamppb.New(found.stopped)}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (p *pods) Status(_ context.Context, r *sandbox.ControllerStatusRequest) (*sandbox.ControllerStatusResponse, error) {
	found, err := p.get(r.SandboxID)
	if err != nil {
		return nil, err
	}
	answer := &sandbox.ControllerStatusResponse{
		SandboxID: r.SandboxID,
		Pid:       uint32(found.holder),
		State:     "SANDBOX_READY",
		CreatedAt: timestamppb.New(found.created),
		Address:   p.tasks,
		Version:   3,
	}
	select {
	case <-found.ended:
		answer.State, answer.Pid, answer.ExitedAt = "SANDBOX_NOTREADY", 0, timestamppb.New(found.stopped)
	default:
	}
	return answer, nil
}

func (p *pods) Shutdown(_ context.Context, r *sandbox.ControllerShutdownRequest) (*sandbox.ControllerShutdownResponse, error) {
	found, err := p.get(r.SandboxID)
	if err != nil {
		return nil, err
	}
	found.once.Do(func() { close(found.stop) })
	p.forget(r.SandboxID)
	return &sandbox.ControllerShutdownResponse{}, nil
}
