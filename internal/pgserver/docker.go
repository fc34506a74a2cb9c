package pgserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ory/dockertest/v3"
	"github.com/ory/dockertest/v3/docker"
)

const postgresPort = "5432/tcp"

// startDocker runs a container. The folder beside it tells a later sweep the
// container's name and, by its lock, whether the program still lives.
func startDocker(ctx context.Context, o Options) (*Server, error) {
	pool, err := dockerPool(ctx)
	if err != nil {
		return nil, err
	}
	repository, tag := splitImage(o.Image)
	if err := ensureImage(ctx, pool, repository, tag); err != nil {
		return nil, err
	}
	f, err := newFolder(account{})
	if err != nil {
		return nil, err
	}
	s, err := runContainer(ctx, pool, f, repository, tag, o.Settings)
	if err != nil {
		return nil, errors.Join(err, removeContainer(ctx, filepath.Base(f.path)), f.remove())
	}
	return s, nil
}

// dockerPool returns a client of the Docker daemon, if one answers.
func dockerPool(ctx context.Context) (*dockertest.Pool, error) {
	pool, err := dockertest.NewPool("")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := pool.Client.PingWithContext(ctx); err != nil {
		return nil, fmt.Errorf("no Docker daemon answers: %w", err)
	}
	return pool, nil
}

// ensureImage downloads the image unless it is there already.
func ensureImage(ctx context.Context, pool *dockertest.Pool, repository, tag string) error {
	_, err := pool.Client.InspectImage(repository + ":" + tag)
	if !errors.Is(err, docker.ErrNoSuchImage) {
		return err
	}
	err = pool.Client.PullImage(docker.PullImageOptions{
		Repository:   repository,
		Tag:          tag,
		OutputStream: io.Discard,
		Context:      ctx,
	}, docker.AuthConfiguration{})
	if err != nil {
		return fmt.Errorf("pulling the image %s:%s: %w", repository, tag, err)
	}
	return nil
}

func runContainer(ctx context.Context, pool *dockertest.Pool, f *folder, repository, tag string, settings map[string]string) (*Server, error) {
	name := filepath.Base(f.path)
	if err := os.WriteFile(filepath.Join(f.path, containerName), []byte(name), 0o600); err != nil {
		return nil, err
	}
	password := rand.Text()
	command := []string{"postgres"}
	all := serverSettings(settings)
	for _, setting := range slices.Sorted(maps.Keys(all)) {
		command = append(command, "-c", setting+"="+all[setting])
	}
	bindIP, host := publishedOn(pool)
	resource, err := pool.RunWithOptions(&dockertest.RunOptions{
		Name:         name,
		Repository:   repository,
		Tag:          tag,
		Cmd:          command,
		Env:          []string{"POSTGRES_PASSWORD=" + password},
		ExposedPorts: []string{postgresPort},
		PortBindings: map[docker.Port][]docker.PortBinding{postgresPort: {{HostIP: bindIP}}},
	}, func(c *docker.HostConfig) {
		c.AutoRemove = true
		c.ShmSize = 256 << 20
	})
	if err != nil {
		return nil, fmt.Errorf("running the image %s:%s: %w", repository, tag, err)
	}
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", password),
		Host:     net.JoinHostPort(host, resource.GetPort(postgresPort)),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
	if err := awaitContainer(ctx, pool, resource, u.String()); err != nil {
		return nil, fmt.Errorf("the container of %s:%s: %w", repository, tag, err)
	}
	return &Server{url: u.String(), stop: func() error {
		err := removeContainer(context.WithoutCancel(ctx), name)
		closeIdle(pool)
		return errors.Join(err, f.remove())
	}}, nil
}

// awaitContainer waits for the server, or for the end of its container.
func awaitContainer(ctx context.Context, pool *dockertest.Pool, r *dockertest.Resource, url string) error {
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		if _, err := pool.Client.WaitContainerWithContext(r.Container.ID, waiting); waiting.Err() == nil || err == nil {
			close(ended)
		}
	}()
	err := await(ctx, url, ended)
	cancel()
	<-returned
	return err
}

// publishedOn returns the address on which the daemon is asked to publish the
// port, and the host under which this program reaches it.
func publishedOn(pool *dockertest.Pool) (bindIP, host string) {
	u, err := url.Parse(pool.Client.Endpoint())
	if err != nil || u.Hostname() == "" || u.Scheme == "unix" || u.Scheme == "npipe" {
		return "127.0.0.1", "127.0.0.1"
	}
	return "0.0.0.0", u.Hostname()
}

// removeContainer ends and removes a container, and is content when there is
// none of that name.
func removeContainer(ctx context.Context, name string) error {
	pool, err := dockerPool(ctx)
	if err != nil {
		return err
	}
	defer closeIdle(pool)
	err = pool.Client.RemoveContainer(docker.RemoveContainerOptions{ID: name, Force: true, RemoveVolumes: true, Context: ctx})
	var gone *docker.NoSuchContainer
	if errors.As(err, &gone) {
		return nil
	}
	return err
}

// closeIdle ends the goroutines of the client's idle connections.
func closeIdle(pool *dockertest.Pool) {
	if t, ok := pool.Client.HTTPClient.Transport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// splitImage splits an image name such as "host:5000/postgres:17".
func splitImage(image string) (repository, tag string) {
	colon := strings.LastIndex(image, ":")
	if colon <= strings.LastIndex(image, "/") {
		return image, "latest"
	}
	return image[:colon], image[colon+1:]
}
