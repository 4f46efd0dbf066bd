# The VM that runs Dagster: the code location, the web server and the daemon, each in a container,
# and the Cloud SQL Auth Proxy. It has no address that the internet can reach, and nothing to lose:
# its state is in the database. vm/ has what runs on it.

variable "vm_zone" {
  description = "Zone of the VM. If null, zone b of the region, which each region has."
  type        = string
  default     = null
}

variable "vm_machine_type" {
  description = "Machine type of the VM, with at least 4 GB of memory. Each run in progress needs about 300 MB."
  type        = string
  default     = "e2-standard-2"
}

variable "vm_reboot_at" {
  description = "When the VM reboots if an update of its operating system is installed, as a calendar event of systemd."
  type        = string
  default     = "Sun 04:00 UTC"
}

variable "dagster_users" {
  description = "Users and groups who may open Dagster's web page, such as group:name@example.com."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for user in var.dagster_users : can(regex("^(user|group):[^@ ]+@[^@ ]+$", user))])
    error_message = "Each of dagster_users must be user: or group:, followed by an email address."
  }
}

variable "dagster_secrets" {
  description = "Secrets in Secret Manager that Dagster's code location and the runs read, as environment variables of the same names, such as ALERT_WEBHOOK. Each has one line."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for secret in var.dagster_secrets : can(regex("^[A-Za-z_][A-Za-z0-9_]*$", secret))])
    error_message = "The name of a secret must be possible for an environment variable: letters, digits and underscores."
  }
}

locals {
  vm_name = "${local.name}-dagster"
  vm_zone = coalesce(var.vm_zone, "${var.region}-b")

  dagster_settings = merge(local.settings, {
    DAGSTER_POSTGRES_URL = "postgresql://${urlencode(local.database_user)}@database:5432/${google_sql_database.dagster.name}"
    DAGSTER_LOGS_BUCKET  = google_storage_bucket.logs.name
    CODE_LOCATION_HOST   = "code-location"
    CODE_LOCATION_PORT   = "4000"
  })

  # The containers by name, which is also their name in the network that they share.
  containers = {
    for name, container in {
      database = {
        description = "The Cloud SQL Auth Proxy"
        image       = "gcr.io/cloud-sql-connectors/cloud-sql-proxy:2.25.0"
        command     = "--auto-iam-authn --private-ip --structured-logs --quiet --address=0.0.0.0 --port=5432 ${google_sql_database_instance.dagster.connection_name}"
        options     = ""
        memory      = "256m"
      }
      code-location = {
        description = "Dagster's code location, and the runs"
        migrate     = "python production/migrate.py"
        command     = "" # that of the image
        options     = "--env-file=/etc/dagster/settings --env-file=/run/dagster/secrets"
        memory      = "$${CODE_LOCATION_MEMORY}"
      }
      web = {
        description = "Dagster's web server"
        command     = "dagster-webserver --host=0.0.0.0 --port=3000 --workspace=production/workspace.yaml"
        options     = "--env-file=/etc/dagster/settings --publish=3000:3000 --no-healthcheck" # the image has one of the code location
      }
      daemon = {
        description = "Dagster's daemon"
        command     = "dagster-daemon run --workspace=production/workspace.yaml"
      }
    } :
    name => merge({
      image   = "$${IMAGE}" # in the unit's EnvironmentFile
      options = "--env-file=/etc/dagster/settings --no-healthcheck"
      migrate = ""
      memory  = "768m"
    }, container)
  }

  cloud_init_values = {
    settings   = join("", [for name, value in local.dagster_settings : "${name}=${value}\n"])
    rollout    = file("${path.module}/vm/rollout.sh")
    secrets    = file("${path.module}/vm/secrets.sh")
    runs       = file("${path.module}/vm/interrupted_runs.sh")
    reboot     = file("${path.module}/vm/reboot.sh")
    reboot_at  = var.vm_reboot_at
    registry   = "${var.region}-docker.pkg.dev"
    containers = local.containers

    secret_names = join(" ", concat([var.project_id], sort(var.dagster_secrets)))

    options = "--network=dagster --read-only --tmpfs=/tmp --cap-drop=ALL --security-opt=no-new-privileges --log-driver=gcplogs"
  }
  cloud_init_revision = sha256("${file("${path.module}/vm/cloud-init.yaml")}${jsonencode(local.cloud_init_values)}")
  cloud_init          = templatefile("${path.module}/vm/cloud-init.yaml", merge(local.cloud_init_values, { revision = local.cloud_init_revision }))

  # Compute Engine's roles are granted on the project, with the VM's name as a condition.
  only_the_vm = "resource.type == 'compute.googleapis.com/Instance' && resource.name == 'projects/${var.project_id}/zones/${local.vm_zone}/instances/${local.vm_name}'"
}

resource "google_compute_instance" "dagster" {
  name                      = local.vm_name
  zone                      = local.vm_zone
  machine_type              = var.vm_machine_type
  allow_stopping_for_update = true

  boot_disk {
    kms_key_self_link = var.kms_key

    initialize_params {
      image = "cos-cloud/cos-stable"
      size  = 20
      type  = "pd-balanced"
    }
  }

  network_interface {
    subnetwork = google_compute_subnetwork.dagster.id # no access_config: no external address
  }

  service_account {
    email  = google_service_account.orchestrator.email
    scopes = ["cloud-platform"] # its roles limit it
  }

  # Without Secure Boot, with which Container-Optimized OS does not update itself.
  shielded_instance_config {
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  metadata = {
    user-data               = local.cloud_init
    dagster-revision        = local.cloud_init_revision # rollout.sh compares it with its own
    cos-update-strategy     = "update_enabled"
    enable-guest-attributes = "TRUE" # for the state that `just deploy-dagster` reads
    enable-oslogin          = "TRUE"
    block-project-ssh-keys  = "TRUE"
    serial-port-enable      = "FALSE"
  }

  lifecycle {
    ignore_changes = [metadata["dagster-image"]] # `just deploy-dagster` sets it
  }

  depends_on = [
    google_artifact_registry_repository_iam_member.orchestrator_reads_images,
    google_kms_crypto_key_iam_member.vm_uses_key,
    google_project_iam_member.orchestrator_uses_database,
    google_project_iam_member.orchestrator_writes_container_logs,
    google_sql_user.orchestrator,
  ]
}

# Identity-Aware Proxy is the only one that reaches the VM: the network has no other rule.
resource "google_compute_firewall" "iap_reaches_web" {
  name                    = "${local.vm_name}-web"
  network                 = google_compute_network.dagster.id
  direction               = "INGRESS"
  source_ranges           = ["35.235.240.0/20"] # https://docs.cloud.google.com/iap/docs/using-tcp-forwarding
  target_service_accounts = [google_service_account.orchestrator.email]

  allow {
    protocol = "tcp"
    ports    = ["3000"]
  }
}

resource "google_iap_tunnel_instance_iam_member" "users_open_web" {
  for_each = var.dagster_users

  instance = google_compute_instance.dagster.name
  zone     = local.vm_zone
  role     = "roles/iap.tunnelResourceAccessor"
  member   = each.key

  condition {
    title      = "Only the web page"
    expression = "destination.port == 3000"
  }
}

# gcloud looks the VM up before it opens a tunnel.
resource "google_project_iam_member" "users_see_vm" {
  for_each = var.dagster_users

  project = var.project_id
  role    = "roles/compute.viewer"
  member  = each.key

  condition {
    title      = "Only ${local.vm_name}"
    expression = local.only_the_vm
  }
}

resource "google_artifact_registry_repository_iam_member" "orchestrator_reads_images" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.orchestrator.member
}

resource "google_secret_manager_secret_iam_member" "orchestrator_reads_secret" {
  for_each = var.dagster_secrets

  secret_id = each.key
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.orchestrator.member

  depends_on = [google_project_service.api]
}

# On the project, because logs belong to the project. It cannot read logs.
resource "google_project_iam_member" "orchestrator_writes_container_logs" {
  project = var.project_id
  role    = "roles/logging.logWriter"
  member  = google_service_account.orchestrator.member
}

resource "google_kms_crypto_key_iam_member" "vm_uses_key" {
  count = var.kms_key == null ? 0 : 1

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${data.google_project.project.number}@compute-system.iam.gserviceaccount.com"
}

output "web_page" {
  description = "The command that opens a tunnel to Dagster's web page. Then open http://localhost:3000."
  value       = "gcloud compute start-iap-tunnel ${local.vm_name} 3000 --local-host-port=localhost:3000 --zone=${local.vm_zone} --project=${var.project_id}"
}
